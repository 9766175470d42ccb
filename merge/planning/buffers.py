"""Buffers that a model computes when it is loaded; some versions of a library saved them, others did not."""

from __future__ import annotations

from collections.abc import Sequence

from merge_models.merge.checkpoint.header import TensorInfo

_COMPUTED = frozenset({
    "attention_bias_idxs", "causal_mask", "cos_cached", "embed_positions", "freqs_ci", "freqs_cis",
    "inv_freq", "inv_timescales", "masked_bias", "original_inv_freq", "position_ids",
    "relative_coords_table", "relative_position_index", "sin_cached", "token_type_ids", "_float_tensor",
})  # fmt: skip
"""The last part of their names, in transformers of all versions and in code that models bring."""


def is_computed(name: str, infos: Sequence[TensorInfo]) -> bool:
    """Returns whether a tensor is such a buffer, by its name; of a ``bias`` also by its shape.

    An attention's causal mask is called ``bias`` in GPT-2 and its kin, as a parameter of any layer is; but it
    is ``[1, 1, n, n]``.

    Args:
        name: its name.
        infos: what models that have it say of it.
    """
    last = name.rpartition(".")[2]
    return last in _COMPUTED or (last == "bias" and all(_is_mask(info.shape) for info in infos))


def _is_mask(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
