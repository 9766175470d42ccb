"""Which layer a tensor belongs to, read from its name: no table of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = re.compile(r"^((?:[^.0-9][^.]*\.)*)([0-9]{1,6})\.(.+)$")
_LAST = re.compile(
    r"(^|\.)(embed_out|embedding_norm)\.|output_embed"
    r"|(^|[._])(head|neck|score|classifier|logits?|post|after)([._]|$)",
    re.IGNORECASE,
)
"""What comes after the layers although its name may speak of embeddings or positions."""
_FIRST = re.compile(
    r"(^|[._])(embed|emb_|emb\.|wte|wpe|patch|position|pos_|cls_token|class_token|mask_token|stem|conv[12]\."
    r"|ln_pre|pre_la?yr|pre_layernorm|project_in|per_layer_|feature_projection)|(^|\.)shared\."
    r"|layernorm_embedding",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in its model.

    Attributes:
        prefix: the name of its stack of layers with the dot, such as ``model.layers.``; empty outside.
        layer: its layer's number, or None outside a stack.
        rest: its name in the layer, or its whole name.
    """

    prefix: str
    layer: int | None
    rest: str

    @property
    def is_first(self) -> bool:
        """Outside the stacks: whether it comes before them (embeddings), not after (norm, head)."""
        if self.layer is not None or _LAST.search(self.rest):
            return False
        return _FIRST.search(self.rest) is not None


def place_of(name: str) -> Place:
    """Splits a name at its first number: ``model.layers.3.mlp.up.weight`` is in layer 3 there."""
    match = _LAYER.match(name)
    if match is None:
        return Place("", None, name)
    return Place(match.group(1), int(match.group(2)), match.group(3))


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Returns the stacks of layers among tensor names, and how many layers each has."""
    counts: dict[str, int] = {}
    for name in names:
        place = place_of(name)
        if place.layer is not None:
            counts[place.prefix] = max(counts.get(place.prefix, 0), place.layer + 1)
    return counts


def depth(place: Place, counts: dict[str, int]) -> float:
    """Returns position in [0, 1] from the embeddings to the head; gradients of parameters are taken there."""
    if place.layer is None:
        return 0.0 if place.is_first else 1.0
    last = counts.get(place.prefix, 1) - 1
    return place.layer / last if last > 0 else 1.0
