"""Where the largest of a stream begin, among equal ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.terms import ALL_KEYS

Series = Callable[[Block], tuple[Sequence[Span], Span | None]]
"""A block to the spans whose keys are compared; or to those whose differences' keys are, and their base."""


@dataclass(frozen=True)
class Cut:
    """Where the largest keys begin: those above ``key``, and the first of those that equal it.

    Attributes:
        key: the least key among them.
        block: blocks before this one hold no other ties than chosen ones, blocks after it none.
        quota: how many ties of that block itself are chosen.
    """

    key: int
    block: int
    quota: int

    def least(self, number: int) -> int:
        """Returns the least key of which a block takes all; ties in the cut's own block aside."""
        return self.key if number < self.block else self.key + 1

    def ties(self, number: int) -> int:
        """Returns how many of a block's elements just below that key are taken: the first ones."""
        return self.quota if number == self.block else 0


NOTHING = Cut(ALL_KEYS - 1, 0, 0)
EVERYTHING = Cut(-1, 0, 0)


@dataclass(frozen=True)
class Totals:
    """What the first round counts.

    Attributes:
        elements: of all blocks.
        positive: for each series, elements that are not zero (nor below 1e-39).
        blocks: how many there are.
    """

    elements: int
    positive: tuple[int, ...]
    blocks: int


Sizes = Callable[[Totals], Sequence[Sequence[int]]]


def with_edges(wanted: Sequence[Sequence[int]], cuts: list[list[Cut]], elements: int) -> list[list[Cut]]:
    """Returns the cuts, but for sizes that take nothing or everything."""

    def edge(size: int, cut: Cut) -> Cut:
        if size <= 0:
            return NOTHING
        return EVERYTHING if size >= elements else cut

    return [[edge(*pair) for pair in zip(*rows, strict=True)] for rows in zip(wanted, cuts, strict=True)]
