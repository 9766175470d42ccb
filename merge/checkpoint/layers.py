"""Which layer a tensor belongs to, read from its name: no table of architectures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = re.compile(r"^((?:[^.0-9][^.]*\.)*)([0-9]{1,6})\.(.+)$")
_FIRST = re.compile(r"embed|wte|wpe|patch|position|cls_token|class_token|(^|\.)shared\.|stem", re.IGNORECASE)


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
        return self.layer is None and _FIRST.search(self.rest) is not None


def place_of(name: str) -> Place:
    """Splits a name at its first number: ``model.layers.3.mlp.up.weight`` is in layer 3 there."""
    match = _LAYER.match(name)
    if match is None:
        return Place("", None, name)
    return Place(match.group(1), int(match.group(2)), match.group(3))


def stacks(names: Iterable[str]) -> dict[str, int]:
    """The stacks of layers among tensor names, and how many layers each has."""
    counts: dict[str, int] = {}
    for name in names:
        place = place_of(name)
        if place.layer is not None:
            counts[place.prefix] = max(counts.get(place.prefix, 0), place.layer + 1)
    return counts


def depth(place: Place, counts: dict[str, int]) -> float:
    """Position in [0, 1] from the embeddings to the head; gradients of parameters are taken there."""
    if place.layer is None:
        return 0.0 if place.is_first else 1.0
    last = counts.get(place.prefix, 1) - 1
    return place.layer / last if last > 0 else 1.0
