"""The k largest of a stream, exactly and without sorting: histograms that narrow the cut down to one element.

Elements are compared by *keys*, int32 bit patterns of non-negative float32 numbers, which sort as the
numbers do; equal keys by position, the lowest first. Three rounds find a cut in tensors of up to 2^26
elements, four in any: 12 bits of the key, 12 bits, then the last 7 together with where its ties lie. Where
a sample tells the key, one round on everything proves it, and finds where its ties lie.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

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
    """One cut on its way: it lies among keys from ``first`` on, of which ``wanted`` are chosen."""

    first: int
    wanted: int


_Searches = list[list[_Search]]


def largest(
    series: int, count: Counter, sizes: Sizes, elements: int = 0
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Cuts that separate the largest keys of each series.

    Args:
        series: how many sequences of keys there are, such as one for each parent.
        count: counts a block's keys.
        sizes: how many elements to choose, one number or more for each series.
        elements: of all blocks, if that is known: in large tensors of few distinct values, such as
            bfloat16 task vectors, a sample then saves two rounds of three.

    Returns:
        A cut for each size, in the same nesting.
    """
    if elements >= _WORTH_A_SAMPLE:
        guessed = yield from _by_sample(series, count, sizes, elements)
        if guessed is not None:
            return guessed
    top, totals = yield from _first_round(series, count, every=1)
    wanted = sizes(totals)
    searches = _narrow_all(top, wanted)
    (middle,) = yield Pass(partial(_counted, count, searches, 7, 4096))
    _narrow(searches, 7, middle)
    found = yield from _last_round(searches, count, totals.blocks)
    return _with_edges(wanted, found, totals.elements)


_WORTH_A_SAMPLE = 1 << 22
_EVERY = 8
_POSITIVE = 1 << 19
"""The least key that the first round tells from zero."""


def _by_sample(
    series: int, count: Counter, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """Finds cuts in a sample, then checks them on everything; None where they do not hold, or might not.

    So only a value that many elements have can be foretold.
    """
    top, sampled = yield from _first_round(series, count, _EVERY)
    scale, doubt = sampled.elements / elements, 2 * sampled.elements**0.5
    positive = tuple(round(number / scale) for number in sampled.positive)
    wanted = sizes(Totals(elements, positive, sampled.blocks * _EVERY))
    searches = _narrow_all(top, [[round(size * scale) for size in row] for row in wanted])
    for shift, bins in ((7, 4096), (0, 128)):
        (counts,) = yield Pass(partial(_counted, count, searches, shift, bins), _EVERY)
        firsts = _firsts(searches)
        _narrow(searches, shift, counts)
        for s, row in enumerate(searches):
            for w, search in enumerate(row):
                alike = int(counts[s, w, (search.first - firsts[s][w]) >> shift])
                if 0 < wanted[s][w] < elements and not doubt < search.wanted < alike - doubt:
                    return None
    return (yield from _checked(searches, count, sizes, elements, sampled.blocks * _EVERY))


def _counted(count: Counter, searches: _Searches, shift: int, bins: int, block: Block) -> Moments:
    return (count(block, _firsts(searches), shift, bins),)


def _checked(
    searches: _Searches, count: Counter, sizes: Sizes, elements: int, blocks: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """The cuts, if they are at the searches' keys; ``blocks`` are as many as there are, or more."""
    segments = min(blocks, SEGMENTS)
    edges = [[_POSITIVE] for _ in searches]
    for row, search in (
        (row, search) for row, found in zip(edges, searches, strict=True) for search in found
    ):
        row += [search.first, search.first + 1]

    def by_segment(block: Block) -> Moments:
        least = count(block, edges, 31, 1)[..., 0]
        above = least[:, 2::2]
        spread = torch.zeros(*above.shape, segments, dtype=torch.int64)
        spread[..., block.number * segments // blocks] = least[:, 1::2] - above
        return least[:, 0], above, spread

    positive, above, spread = yield Pass(by_segment)
    wanted = sizes(Totals(elements, tuple(positive.tolist()), blocks))
    for s, row in enumerate(searches):
        for w, search in enumerate(row):
            search.wanted = wanted[s][w] - int(above[s, w])
            if 0 < wanted[s][w] < elements and not 0 < search.wanted <= int(spread[s, w].sum()):
                return None
    cuts = yield from _placed(searches, spread, count, blocks)
    return _with_edges(wanted, cuts, elements)


def _with_edges(wanted: Sequence[Sequence[int]], cuts: list[list[Cut]], elements: int) -> list[list[Cut]]:
    """The cuts, but of sizes that take nothing or everything."""

    def edge(size: int, cut: Cut) -> Cut:
        if size <= 0:
            return NOTHING
        return EVERYTHING if size >= elements else cut

    return [[edge(*pair) for pair in zip(*rows, strict=True)] for rows in zip(wanted, cuts, strict=True)]


def _first_round(series: int, count: Counter, every: int) -> Generator[Pass, Moments, tuple[Tensor, Totals]]:
    start = [[0]] * series

    def measure(block: Block) -> Moments:
        return count(block, start, 19, 4096), torch.ones(1, dtype=torch.int64)

    top, blocks = yield Pass(measure, every)
    elements = int(top[0].sum())
    return top, Totals(elements, tuple((elements - top[:, 0, 0]).tolist()), int(blocks))


def _firsts(searches: _Searches) -> list[list[int]]:
    return [[search.first for search in row] for row in searches]


def _narrow_all(top: Tensor, wanted: Sequence[Sequence[int]]) -> _Searches:
    return [[_narrowed(0, 19, top[s, 0], size) for size in sizes] for s, sizes in enumerate(wanted)]


def _narrow(searches: _Searches, shift: int, counts: Tensor) -> None:
    for s, row in enumerate(searches):
        row[:] = [_narrowed(search.first, shift, counts[s, w], search.wanted) for w, search in enumerate(row)]


def _narrowed(first: int, shift: int, counts: Tensor, wanted: int) -> _Search:
    """The bin in which the ``wanted`` largest run out, and how many it gives."""
    place, left = _run_out(counts.flip(0), wanted)
    return _Search(first + ((len(counts) - 1 - place) << shift), left)


def _run_out(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Where the first ``wanted`` end: the place, and how many of its own are among them."""
    reached = counts.cumsum(0)
    place = min(int(torch.searchsorted(reached, wanted)), len(counts) - 1)
    return place, wanted - (int(reached[place - 1]) if place else 0)


def _last_round(
    searches: _Searches, count: Counter, blocks: int
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Finds the last 7 bits, and in which block the ties that are chosen end."""
    segments = min(blocks, SEGMENTS)

    def by_segment(block: Block) -> Moments:
        found = count(block, _firsts(searches), 0, 128)
        spread = torch.zeros(*found.shape, segments, dtype=torch.int64)
        spread[..., block.number * segments // blocks] = found
        return (spread,)

    (spread,) = yield Pass(by_segment)
    firsts = _firsts(searches)
    _narrow(searches, 0, spread.sum(-1))
    ties = torch.stack(
        [
            torch.stack([spread[s, w, search.first - firsts[s][w]] for w, search in enumerate(row)])
            for s, row in enumerate(searches)
        ]
    )
    return (yield from _placed(searches, ties, count, blocks))


def _placed(
    searches: _Searches, ties: Tensor, count: Counter, blocks: int
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Where ties end, given how many there are in each run of blocks: int64 ``[series, sizes, runs]``."""
    places = [
        [_run_out(ties[s, w], search.wanted) for w, search in enumerate(row)]
        for s, row in enumerate(searches)
    ]
    if ties.shape[-1] < blocks:
        places = yield from _within_segments(searches, places, count, blocks, ties.shape[-1])
    return [
        [Cut(search.first, block, quota) for search, (block, quota) in zip(row, found, strict=True)]
        for row, found in zip(searches, places, strict=True)
    ]


def _within_segments(
    searches: _Searches,
    places: list[list[tuple[int, int]]],
    count: Counter,
    blocks: int,
    segments: int,
) -> Generator[Pass, Moments, list[list[tuple[int, int]]]]:
    """The blocks in which ties end, given the runs of blocks."""
    starts = [[-(-segment * blocks // segments) for segment, _ in row] for row in places]
    longest = -(-blocks // segments)

    def by_block(block: Block) -> Moments:
        ties = count(block, _firsts(searches), 0, 1)[..., 0]
        spread = torch.zeros(*ties.shape, longest, dtype=torch.int64)
        for s, row in enumerate(starts):
            for w, start in enumerate(row):
                if 0 <= block.number - start < longest:
                    spread[s, w, block.number - start] = ties[s, w]
        return (spread,)

    (spread,) = yield Pass(by_block)
    found = []
    for s, row in enumerate(places):
        ends = [_run_out(spread[s, w], quota) for w, (_, quota) in enumerate(row)]
        found.append([(starts[s][w] + place, quota) for w, (place, quota) in enumerate(ends)])
    return found
