"""Cuts by histograms, which narrow them down to one element.

Three rounds find a cut in tensors of up to 2^26 elements, four in any: 12 bits of the key, 12 bits, then
the last 7 together with where its ties lie.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.keys import count_keys
from merge_models.merge.kernels.selection.cuts import Cut, Series, Sizes, Totals, with_edges

SEGMENTS = 256
"""Into so many runs of blocks a survey is divided to find where the ties of a cut end."""


@dataclass
class _Search:
    """One cut on its way: it lies among keys from ``first`` on, of which ``wanted`` are chosen."""

    first: int
    wanted: int


_Searches = list[list[_Search]]


def by_rounds(count: int, series: Series, sizes: Sizes) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Returns the cuts of :func:`merge_models.merge.kernels.selection.select.largest`."""
    top, totals = yield from _first_round(count, series)
    wanted = sizes(totals)
    searches = [[_narrowed(0, 19, top[s, 0], size) for size in row] for s, row in enumerate(wanted)]
    (middle,) = yield Pass(_counts, (series, _firsts(searches)))
    _narrow(searches, 7, middle)
    keys = yield from _last_round(searches, series, totals.blocks)
    return with_edges(wanted, keys, totals.elements)


def nth_keys(keys: np.ndarray, places: Sequence[int]) -> list[int]:
    """Returns the keys at some places, counted from 1, of an int32 list in descending order."""
    stored = [Span(keys.view(np.uint8), BY_CODE["F32"])]
    top = count_keys(stored, None, [[0]], 19, 4096)[0, 0]
    searches = [[_narrowed(0, 19, top, place) for place in places]]
    for shift, bins in ((7, 4096), (0, 128)):
        _narrow(searches, shift, count_keys(stored, None, _firsts(searches), shift, bins))
    return [search.first for search in searches[0]]


def _first_round(count: int, series: Series) -> Generator[Pass, Moments, tuple[np.ndarray, Totals]]:
    top, blocks = yield Pass(_top_counts, (series, count))
    elements = int(top[0].sum())
    return top, Totals(elements, tuple((elements - top[:, 0, 0]).tolist()), int(blocks[0]))


def _top_counts(block: Block, series: Series, count: int) -> Moments:
    return count_keys(*series(block), [[0]] * count, 19, 4096), np.ones(1, np.int64)


def _counts(block: Block, series: Series, firsts: Sequence[Sequence[int]]) -> Moments:
    return (count_keys(*series(block), firsts, 7, 4096),)


def _firsts(searches: _Searches) -> list[list[int]]:
    return [[search.first for search in row] for row in searches]


def _narrow(searches: _Searches, shift: int, counts: np.ndarray) -> None:
    for s, row in enumerate(searches):
        row[:] = [_narrowed(search.first, shift, counts[s, w], search.wanted) for w, search in enumerate(row)]


def _narrowed(first: int, shift: int, counts: np.ndarray, wanted: int) -> _Search:
    """The bin in which the ``wanted`` largest run out, and how many it gives."""
    place, left = run_out(counts[::-1], wanted)
    return _Search(first + ((len(counts) - 1 - place) << shift), left)


def run_out(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """Returns where the first ``wanted`` end: the place, and how many of its own are among them."""
    reached = counts.cumsum(dtype=np.int64)
    place = min(int(reached.searchsorted(wanted)), len(counts) - 1)
    return place, wanted - (int(reached[place - 1]) if place else 0)


def _last_round(
    searches: _Searches, series: Series, blocks: int
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Finds the last 7 bits, and in which block the ties that are chosen end."""
    segments = min(blocks, SEGMENTS)
    firsts = _firsts(searches)
    (spread,) = yield Pass(_counts_by_segment, (series, firsts, segments, blocks))
    _narrow(searches, 0, spread.sum(-1))
    ties = np.array(
        [
            [spread[s, w, search.first - firsts[s][w]] for w, search in enumerate(row)]
            for s, row in enumerate(searches)
        ]
    )
    return (yield from _placed(searches, ties, series, blocks))


def _counts_by_segment(
    block: Block, series: Series, firsts: Sequence[Sequence[int]], segments: int, blocks: int
) -> Moments:
    counts = count_keys(*series(block), firsts, 0, 128)
    spread = np.zeros((*counts.shape, segments), np.int64)
    spread[..., block.number * segments // blocks] = counts
    return (spread,)


def _placed(
    searches: _Searches, ties: np.ndarray, series: Series, blocks: int
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Where ties end, given how many there are in each run of blocks: int64 ``[series, sizes, runs]``."""
    places = [
        [run_out(ties[s, w], search.wanted) for w, search in enumerate(row)] for s, row in enumerate(searches)
    ]
    if ties.shape[-1] < blocks:
        places = yield from _within_segments(searches, places, series, blocks, ties.shape[-1])
    return [
        [Cut(search.first, block, quota) for search, (block, quota) in zip(row, found, strict=True)]
        for row, found in zip(searches, places, strict=True)
    ]


def _within_segments(
    searches: _Searches,
    places: list[list[tuple[int, int]]],
    series: Series,
    blocks: int,
    segments: int,
) -> Generator[Pass, Moments, list[list[tuple[int, int]]]]:
    """The blocks in which ties end, given the runs of blocks."""
    starts = [[-(-segment * blocks // segments) for segment, _ in row] for row in places]
    longest = -(-blocks // segments)
    (spread,) = yield Pass(_ties_by_block, (series, _firsts(searches), starts, longest))
    windows = []
    for s, row in enumerate(places):
        ends = [run_out(spread[s, w], quota) for w, (_, quota) in enumerate(row)]
        windows.append([(starts[s][w] + place, quota) for w, (place, quota) in enumerate(ends)])
    return windows


def _ties_by_block(
    block: Block,
    series: Series,
    firsts: Sequence[Sequence[int]],
    starts: Sequence[Sequence[int]],
    longest: int,
) -> Moments:
    """Ties of the cuts in each of the blocks from ``starts`` on: int64 ``[series, sizes, longest]``."""
    ties = count_keys(*series(block), firsts, 0, 1)[..., 0]
    spread = np.zeros((*ties.shape, longest), np.int64)
    for s, row in enumerate(starts):
        for w, start in enumerate(row):
            if 0 <= block.number - start < longest:
                spread[s, w, block.number - start] = ties[s, w]
    return (spread,)
