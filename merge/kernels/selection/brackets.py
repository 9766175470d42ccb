"""Cuts by a sample: it brackets each of them, and one round on everything gathers what is in the brackets.

A bracket that misses its cut is found out by counting, never guessed: :func:`by_sample` then gives up.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.kernels.keys import Tally, count_keys, gather_keys, keys_of
from merge_models.merge.kernels.selection.cuts import NOTHING, Cut, Series, Sizes, Totals, with_edges
from merge_models.merge.kernels.selection.rounds import nth_keys, run_out
from merge_models.merge.kernels.selection.samples import RUN, Listed
from merge_models.merge.kernels.terms import ALL_KEYS

_DOUBT = 5.0
"""Standard errors on either side of a bracket."""

LISTED = 1 << 23
"""So many keys may be gathered; brackets that hold more are made narrower first, by a round of their own."""

_BINS = 4096
_BLOCK = 1 << 18
"""About so many elements make a block."""

_POSITIVE = 1 << 19
"""The least key that is told from zero."""

_Window = tuple[int, int]
_Windows = Sequence[Sequence[_Window]]


def by_sample(
    sample: Block, series: Series, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """Finds the cuts of ``select.largest``; returns None where a bracket missed."""
    spans, reference = series(sample)
    keys = [keys_of(span, reference) for span in spans]
    taken = len(keys[0])
    if not taken:
        return None
    positive = [round(int((k >= _POSITIVE).sum()) / taken * elements) for k in keys]
    wanted = sizes(Totals(elements, tuple(positive), 0))
    windows = [[_bracket(k, size / elements) for size in row] for k, row in zip(keys, wanted, strict=True)]
    if _entries(keys, windows, elements) > LISTED:
        narrow = yield from _narrowed(windows, series, sizes, elements)
        if narrow is None:
            return None
        windows = narrow
    return (yield from _within(windows, series, sizes, elements))


def _bracket(keys: np.ndarray, share: float) -> _Window:
    """Where the least of the largest ``share`` of all elements should be, by a sample."""
    if not 0 < share < 1:
        return 0, 0
    place = len(keys) * share
    doubt = _DOUBT * _error(keys, place) + RUN
    least, most = math.ceil(place + doubt), math.floor(place - doubt)
    first, last = nth_keys(keys, [min(least, len(keys)), max(most, 1)])
    return first if least <= len(keys) else 0, last + 1 if most >= 1 else ALL_KEYS


def _error(keys: np.ndarray, place: float) -> float:
    """Standard error of how many sampled keys are among the ``place`` largest.

    Neighbours are alike, so runs are what is drawn: their numbers vary the more, the more rows of a matrix
    differ. At least that of independent draws.
    """
    (middle,) = nth_keys(keys, [min(max(round(place), 1), len(keys))])
    among = (keys.reshape(-1, RUN) >= middle).sum(1)
    share = place / len(keys)
    return math.sqrt(len(among) * max(float(among.var()), RUN * share * (1 - share)))


def _entries(keys: Sequence[np.ndarray], windows: _Windows, elements: int) -> float:
    """About how many entries make what is in the windows: equal keys of a block are one."""
    total = 0.0
    for own, row in zip(keys, windows, strict=True):
        for first, stop in row:
            inside = own[(own >= first) & (own <= stop - 1)]
            different = 2.0 * len(np.unique(inside)) / _BLOCK
            total += min(len(inside) / len(own), different) * elements
    return total


def _narrowed(
    windows: _Windows, series: Series, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, _Windows | None]:
    """Windows of one bin each, by histograms of what is in these; None where a cut is outside of them."""
    shift = max(_shift(window) for row in windows for window in row)
    firsts = [[first for first, _ in row] for row in windows]
    edges = [[min(first + (_BINS << shift), ALL_KEYS) for first in row] for row in firsts]
    counts, above, positive, blocks = yield Pass(_count_and_beyond, (series, firsts, edges, shift))
    wanted = sizes(Totals(elements, tuple(positive.tolist()), int(blocks[0])))
    narrow: list[list[_Window]] = []
    for s, row in enumerate(wanted):
        narrow.append([])
        for w, size in enumerate(row):
            left, held = size - int(above[s, w]), counts[s, w]
            if not 0 < size < elements:
                narrow[s].append((0, 0))
            elif 0 < left <= int(held.sum()):
                place = _BINS - 1 - run_out(held[::-1], left)[0]
                first = firsts[s][w] + (place << shift)
                narrow[s].append((first, first + (1 << shift)))
            else:
                return None
    return narrow


def _count_and_beyond(
    block: Block, series: Series, firsts: Sequence[Sequence[int]], edges: Sequence[Sequence[int]], shift: int
) -> Moments:
    spans, base = series(block)
    beyond = gather_keys(spans, base, [[(edge, edge) for edge in row] for row in edges], _POSITIVE)
    counts = count_keys(spans, base, firsts, shift, _BINS)
    return counts, beyond.above, beyond.positive, np.ones(1, np.int64)


def _shift(window: _Window) -> int:
    """log2 of the keys in a bin, where :data:`_BINS` of them cover a window."""
    first, stop = window
    return max(0, max(stop - first - 1, 0).bit_length() - _BINS.bit_length() + 1)


def _within(
    windows: _Windows, series: Series, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """The cuts, where they lie in these windows."""
    listed, within, above, positive = yield Pass(_gathered, (series, windows))
    wanted = sizes(Totals(elements, tuple(positive.tolist()), len(listed.parts)))
    cuts: list[list[Cut]] = []
    for s, row in enumerate(wanted):
        cuts.append([])
        for w, size in enumerate(row):
            left = size - int(above[s, w])
            if not 0 < size < elements:
                cuts[s].append(NOTHING)
            elif 0 < left <= int(within[s, w]):
                tallies = [part.inside[s][w] for part in listed.parts]
                cuts[s].append(_cut(tallies, windows[s][w], left))
            else:
                return None
    return with_edges(wanted, cuts, elements)


def _gathered(block: Block, series: Series, windows: _Windows) -> Moments:
    keys = gather_keys(*series(block), windows, _POSITIVE)
    return Listed(keys), keys.within.copy(), keys.above, keys.positive  # totals overwrite a part


def _cut(tallies: Sequence[Tally], window: _Window, wanted: int) -> Cut:
    """The cut below the ``wanted`` largest of what blocks hold of a window."""
    first, shift = window[0], _shift(window)
    totals = np.zeros(_BINS)
    for keys, counts in tallies:
        totals += np.bincount((keys - first) >> shift, counts, _BINS)
    place, wanted = run_out(totals[::-1], wanted)
    chosen = [(keys - first) >> shift == _BINS - 1 - place for keys, _ in tallies]
    keys, counts = (
        np.concatenate([part[own] for part, own in zip(parts, chosen, strict=True)])
        for parts in zip(*tallies, strict=True)
    )
    order = np.argsort(-keys)
    key = int(keys[order[run_out(counts[order], wanted)[0]]])
    wanted -= int(counts[keys > key].sum())
    ties = np.array([counts[keys == key].sum() for keys, counts in tallies])
    return Cut(key, *run_out(ties, wanted))
