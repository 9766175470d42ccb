"""The k largest of a stream, exactly and without sorting: histograms that narrow the cut down to one element.

Elements are compared by *keys*, int32 bit patterns of non-negative float32 numbers, which sort as the
numbers do; equal keys by position, the lowest first. Three rounds find a cut in tensors of up to 2^26
elements, four in any: 12 bits of the key, 12 bits, then the last 7 together with where its ties lie.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_models.merge.kernels.task_vectors import ALL_KEYS
from merge_models.merge.strategies.base import Block, Moments, Pass

SEGMENTS = 256
"""Into so many runs of blocks a survey is divided to find where the ties of a cut end."""

Counter = Callable[[Block, Sequence[Sequence[int]], int, int], Tensor]
"""``(block, firsts, shift, bins)`` to histograms int64 ``[series, windows, bins]`` of a block's keys, as
:func:`merge_models.merge.kernels.task_vectors.count_keys` gives them."""


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
        """The least key of which a block takes all; ties in the cut's own block aside."""
        return self.key if number < self.block else self.key + 1

    def chosen(self, keys: Tensor, number: int) -> Tensor:
        """Which keys of a block are among the largest: bool, shaped as ``keys``."""
        chosen = keys > self.least(number) - 1
        if number == self.block and self.quota:
            ties = (keys == self.key).reshape(-1)
            chosen |= (ties & (ties.cumsum(0) <= self.quota)).view(keys.shape)
        return chosen


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


@dataclass
class _Search:
    """One cut on its way: it lies among keys ``[first, first + width)``, ``wanted`` of them being chosen."""

    first: int
    wanted: int


def largest(series: int, count: Counter, sizes: Sizes) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Cuts that separate the largest keys of each series.

    Args:
        series: how many sequences of keys there are, such as one for each parent.
        count: counts a block's keys.
        sizes: how many elements to choose, one number or more for each series.

    Returns:
        A cut for each size, in the same nesting.
    """
    top, totals = yield from _first_round(series, count)
    wanted = sizes(totals)
    searches = [[_narrowed(0, 19, top[s, 0], size) for size in sizes] for s, sizes in enumerate(wanted)]
    (middle,) = yield Pass(lambda block: (count(block, _firsts(searches), 7, 4096),))
    _narrow(searches, 7, middle)
    cuts = yield from _ties(searches, count, totals.blocks)
    return [
        [_edge(size, totals.elements) or cut for size, cut in zip(row, found, strict=True)]
        for row, found in zip(wanted, cuts, strict=True)
    ]


def _edge(size: int, elements: int) -> Cut | None:
    if size <= 0:
        return NOTHING
    return EVERYTHING if size >= elements else None


def _first_round(series: int, count: Counter) -> Generator[Pass, Moments, tuple[Tensor, Totals]]:
    start = [[0]] * series

    def measure(block: Block) -> Moments:
        return count(block, start, 19, 4096), torch.ones(1, dtype=torch.int64)

    top, blocks = yield Pass(measure)
    elements = int(top[0].sum())
    return top, Totals(elements, tuple((elements - top[:, 0, 0]).tolist()), int(blocks))


def _firsts(searches: list[list[_Search]]) -> list[list[int]]:
    return [[search.first for search in row] for row in searches]


def _narrow(searches: list[list[_Search]], shift: int, counts: Tensor) -> None:
    for series, row in enumerate(searches):
        row[:] = [
            _narrowed(search.first, shift, counts[series, number], search.wanted)
            for number, search in enumerate(row)
        ]


def _narrowed(first: int, shift: int, counts: Tensor, wanted: int) -> _Search:
    """The bin in which the ``wanted`` largest run out, and how many it gives."""
    reached = counts.flip(0).cumsum(0)
    place = min(int(torch.searchsorted(reached, wanted)), len(counts) - 1)
    chosen_above = int(reached[place - 1]) if place else 0
    return _Search(first + ((len(counts) - 1 - place) << shift), wanted - chosen_above)


def _ties(
    searches: list[list[_Search]], count: Counter, blocks: int
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Finds the last 7 bits, and in which block the ties that are chosen end."""
    segments = min(blocks, SEGMENTS)

    def by_segment(block: Block) -> Moments:
        found = count(block, _firsts(searches), 0, 128)
        spread = torch.zeros(*found.shape, segments, dtype=torch.int64)
        spread[..., block.number * segments // blocks] = found
        return (spread,)

    (spread,) = yield Pass(by_segment)
    _narrow(searches, 0, spread.sum(-1))
    places = []
    for series, row in enumerate(searches):
        ties = [spread[series, number, search.first & 127] for number, search in enumerate(row)]
        places.append([_run_out(t, s.wanted) for t, s in zip(ties, row, strict=True)])
    if segments < blocks:
        places = yield from _within_segments(searches, places, count, blocks, segments)
    return [
        [Cut(search.first, block, quota) for search, (block, quota) in zip(row, found, strict=True)]
        for row, found in zip(searches, places, strict=True)
    ]


def _run_out(ties: Tensor, wanted: int) -> tuple[int, int]:
    """Where the first ``wanted`` ties end: the place, and how many of its own are among them."""
    reached = ties.cumsum(0)
    place = min(int(torch.searchsorted(reached, wanted)), len(ties) - 1)
    before = int(reached[place - 1]) if place else 0
    return place, wanted - before


def _within_segments(
    searches: list[list[_Search]],
    places: list[list[tuple[int, int]]],
    count: Counter,
    blocks: int,
    segments: int,
) -> Generator[Pass, Moments, list[list[tuple[int, int]]]]:
    starts = [[-(-segment * blocks // segments) for segment, _ in row] for row in places]
    longest = -(-blocks // segments)

    def by_block(block: Block) -> Moments:
        ties = count(block, _firsts(searches), 0, 1)[..., 0]
        spread = torch.zeros(*ties.shape, longest, dtype=torch.int64)
        for series, row in enumerate(starts):
            for number, start in enumerate(row):
                if 0 <= block.number - start < longest:
                    spread[series, number, block.number - start] = ties[series, number]
        return (spread,)

    (spread,) = yield Pass(by_block)
    found = []
    for series, row in enumerate(places):
        ends = [_run_out(spread[series, number], quota) for number, (_, quota) in enumerate(row)]
        found.append(
            [(start + place, quota) for start, (place, quota) in zip(starts[series], ends, strict=True)]
        )
    return found
