"""What a config says of single layers by their numbers, said of the layers that the output has.

Known by name, since a list of numbers does not tell what it counts. The names are those of transformers'
configurations, and of models that it loads with older ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.errors import PlanError

Origins = Sequence[tuple[int, int]]
"""(model index, layer) of each layer of the output."""

_OF_A_KIND = frozenset(
    """
    attn_layer_indices cross_attention_layers full_attn_idxs fullatt_block_indexes global_attn_indexes
    hybrid_layer_ids local_layer_ids look_ahead_layers look_backward_layers mlp_only_layers moe_layers
    residual_block_indices rope_scaling_layers window_block_indices
    """.split()
)
"""The layers that are of some kind, in any order: each layer keeps its kind."""
_TAPPED = frozenset(
    """
    cat_hidden_layers deepstack_visual_indexes intermediate_hidden_state_indices intermediate_layers_indices
    subsample_layers
    """.split()
)
"""The layers at which something of a fixed number is done or taken out, one entry for each."""
_SOURCES = frozenset(["kv_source_layers"])
"""For each layer the one, itself or before it, whose keys and values it uses."""
_LETTERS = frozenset(["hybrid_override_pattern"])
"""A text with one letter a layer."""
_RUNS = frozenset(["attention_types"])
"""Runs of layers: ``[[kinds], times]``, one after the other."""

_MOST = 1_000_000
"""Layers that runs may add up to."""

NAMES = _OF_A_KIND | _TAPPED | _SOURCES | _LETTERS | _RUNS


def renumbered(key: str, own: Mapping[int, Any], origins: Origins, donor: Any, count: int) -> Any:
    """Returns the value of one of ``NAMES`` for an output of other layers; the donor's where that is of
    another form.

    Args:
        key: its name.
        own: its value in the config of every model in ``origins``.
        origins: the output's layers.
        donor: its value in the donor's config; stands in where a model has none of this form.
        count: layers that the donor has.

    Raises:
        PlanError: it speaks of a layer that the output has not, and cannot do without.
    """
    form = _form(key, donor, count)
    if form is None:
        return donor
    forms = {model: given if (given := _form(key, own[model], None)) is not None else form for model in own}
    if key in _OF_A_KIND:
        return [place for place, (model, layer) in enumerate(origins) if layer in forms[model]]
    if key in _TAPPED:
        return [_place_of(key, layer, origins) for layer in form]
    if key in _SOURCES:
        return _sources(key, forms, origins)
    kept = [forms[model][layer % len(forms[model])] for model, layer in origins]
    return "".join(kept) if key in _LETTERS else [[kept, 1]]


def _form(key: str, value: Any, count: int | None) -> Sequence[Any] | None:
    """A value as numbers of layers, or as one entry a layer (``count``, where that is known); None where it
    is neither."""
    if key in _RUNS:
        value = _expanded(value)
    if key in _LETTERS | _RUNS:
        fits = isinstance(value, str if key in _LETTERS else list) and len(value) > 0
        return value if fits and count in (None, len(value)) else None
    if not isinstance(value, list) or not all(type(layer) is int and layer >= 0 for layer in value):
        return None
    if key in _TAPPED and count is not None and any(layer >= count for layer in value):
        return None
    return None if key in _SOURCES and count not in (None, len(value)) else value


def _expanded(runs: Any) -> list[Any] | None:
    """One entry a layer."""
    kinds: list[Any] = []
    for run in runs if isinstance(runs, list) else [None]:
        if not isinstance(run, list) or len(run) != 2 or not isinstance(run[0], list):
            return None
        if type(run[1]) is not int or len(kinds) + len(run[0]) * max(run[1], 0) > _MOST:
            return None
        kinds += run[0] * run[1]
    return kinds


def _place_of(key: str, layer: int, origins: Origins) -> int:
    """The last place of a layer of that number, whichever model it is from."""
    places = [place for place, (_, own) in enumerate(origins) if own == layer]
    if not places:
        raise PlanError(
            f"slices: the config.json of the output's donor names layer {layer} in '{printable(key)}', and no"
            " slice takes it; take that layer, or name another in the donor's config"
        )
    return places[-1]


def _sources(key: str, forms: Mapping[int, Sequence[int]], origins: Origins) -> list[int]:
    found: list[int] = []
    for place, (model, layer) in enumerate(origins):
        source = forms[model][layer] if layer < len(forms[model]) else layer
        if source == layer:
            found.append(place)
            continue
        before = [p for p in range(place) if origins[p] == (model, source)]
        if not before:
            raise PlanError(
                f"slices: layer {layer} uses the keys and values of layer {source} ('{printable(key)}'),"
                " which does not stand before it in the slices; take that layer too"
            )
        found.append(before[-1])
    return found
