"""How long a text may be for models, by their configs: known before any of them is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from merge_models.merge.checkpoint.sources.lora import open_model
from merge_models.merge.errors import printable

LENGTH = 256
"""Tokens of a calibration sequence, where nothing else is asked for."""

_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")
_PARTS = ("text_config", "llm_config", "language_config")
_BEHIND_PADDING = frozenset(
    "camembert data2vec-text ibert longformer mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl"
    " xmod".split()
)
"""Models whose positions are counted from behind that of the padding token."""


def most_positions(config: Mapping[str, Any]) -> int | None:
    """Returns the most tokens that a model reads, by its config.json; None where that does not say."""
    parts = [config, *(config[key] for key in _PARTS if isinstance(config.get(key), dict))]
    said = [part.get(key) for part in parts for key in _KEYS]
    limits = [n for n in said if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    padding = config.get("pad_token_id", 1)
    lost = padding + 1 if config.get("model_type") in _BEHIND_PADDING and isinstance(padding, int) else 0
    return min(limits) - lost if limits else None


def fitting_length(
    models: Sequence[str | os.PathLike[str]], length: int, *, allow_pickle: bool = False
) -> tuple[int, tuple[str, ...]]:
    """Returns the length of sequences that all models take, and what is to be told where it is less than
    asked for.

    Args:
        models: folders or Hub ids.
        length: what is asked for.
        allow_pickle: whether weights may be files of ``torch.save``; they are not read here.
    """
    least, whose = length, None
    for model in models:
        with closing(open_model(os.fspath(model), allow_pickle=allow_pickle)) as checkpoint:
            most = most_positions(checkpoint.config)
        if most is not None and most < least:
            least, whose = max(most, 1), checkpoint.label
    if whose is None:
        return length, ()
    told = f"calibration sequences have {least} tokens, not {length}: {printable(whose)} takes no longer ones"
    return least, (told,)
