"""Cuts by a sample: it brackets each of them, and one round on everything gathers what is in the brackets.

A bracket that misses its cut is found out by counting, never guessed: :func:`by_sample` then gives up.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from merge_models.merge.kernels.blocks import Span
from merge_models.merge.kernels.keys import Tally, gather_keys, keys_of
from merge_models.merge.kernels.terms import ALL_KEYS
from merge_models.merge.strategies.base import Block, Moments, Pass
from merge_models.merge.strategies.cuts import NOTHING, Cut, Series, Sizes, Totals, with_edges
from merge_models.merge.strategies.rounds import nth_keys, run_out

SAMPLE = 1 << 17
"""About so many elements are sampled."""

_SPARSE = 32
"""At most one in so many."""

_RUN = 64
"""Elements that are sampled in a row: two cache lines of 16 bits."""

_DOUBT = 12.0
"""Standard errors on either side of a bracket. Neighbours are alike, so a sample of runs errs more than the
binomial formula says: this leaves room for the variance of 4 alike at 6 of its standard errors."""

_POSITIVE = 1 << 19
"""The least key that is told from zero."""

_Window = tuple[int, int]


def by_sample(
    series: Series, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """The cuts of :func:`merge_models.merge.strategies.select.largest`, or None where a bracket missed.

    There are more than :data:`SAMPLE` elements.
    """
    every = max(_SPARSE, elements // SAMPLE)
    (sample,) = yield Pass(lambda block: (_Listed(_sampled(series, every, block)),))
    keys = [np.concatenate(parts) for parts in zip(*sample.parts, strict=True)]
    taken = len(keys[0])
    if not taken:
        return None
    positive = [round(int((k >= _POSITIVE).sum()) / taken * elements) for k in keys]
    wanted = sizes(Totals(elements, tuple(positive), len(sample.parts)))
    windows = [[_bracket(k, size / elements) for size in row] for k, row in zip(keys, wanted, strict=True)]
    return (yield from _within(windows, series, sizes, elements))


class _Listed:
    """Parts that are listed, in block order, where other moments are added."""

    def __init__(self, part: Any) -> None:
        self.parts = [part]

    def __iadd__(self, later: _Listed) -> _Listed:
        self.parts += later.parts
        return self

    @property
    def nbytes(self) -> int:
        """Memory that they take, next to nothing: a sample, or a bracket's tallies."""
        return 0


def _sampled(series: Series, every: int, block: Block) -> list[np.ndarray]:
    """Sampled keys of each series."""
    base = block.base_span
    thinned = replace(
        block,
        spans=tuple(_runs(span, every, block.number) for span in block.spans),
        base_span=None if base is None else _runs(base, every, block.number),
        columns=None,
    )
    spans, reference = series(thinned)
    return [keys_of(span, reference) for span in spans]


def _runs(span: Span, every: int, number: int) -> Span:
    """Short runs of a block. Their distance is no power of two: they wander over a matrix's columns."""
    distance, size = _RUN * (every - 1), span.dtype.size
    start = number * _RUN % distance
    runs = max(0, span.count - start) // distance
    rows = span.data[start * size : (start + runs * distance) * size].reshape(runs, distance * size)
    return Span(np.ascontiguousarray(rows[:, : _RUN * size]).reshape(-1), span.dtype)


def _bracket(keys: np.ndarray, share: float) -> _Window:
    """Where the least of the largest ``share`` of all elements should be, by a sample."""
    if not 0 < share < 1:
        return 0, 0
    doubt = _DOUBT * math.sqrt(len(keys) * share * (1 - share)) + _RUN
    place = len(keys) * share
    least, most = math.ceil(place + doubt), math.floor(place - doubt)
    first, last = nth_keys(keys, [min(least, len(keys)), max(most, 1)])
    return first if least <= len(keys) else 0, last + 1 if most >= 1 else ALL_KEYS


def _within(
    windows: Sequence[Sequence[_Window]], series: Series, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """The cuts, where they lie in these windows."""

    def measure(block: Block) -> Moments:
        found = gather_keys(*series(block), windows, _POSITIVE)
        return _Listed(found), found.within.copy(), found.above, found.positive  # totals overwrite a part

    listed, within, above, positive = yield Pass(measure)
    wanted = sizes(Totals(elements, tuple(positive.tolist()), len(listed.parts)))
    cuts: list[list[Cut]] = []
    for s, row in enumerate(wanted):
        cuts.append([])
        for w, size in enumerate(row):
            left = size - int(above[s, w])
            if not 0 < size < elements:
                cuts[s].append(NOTHING)
            elif 0 < left <= int(within[s, w]):
                cuts[s].append(_cut([part.inside[s][w] for part in listed.parts], left))
            else:
                return None
    return with_edges(wanted, cuts, elements)


def _cut(tallies: Sequence[Tally], wanted: int) -> Cut:
    """The cut below the ``wanted`` largest of what blocks hold of a window."""
    keys = np.concatenate([keys for keys, _ in tallies])
    order = np.argsort(-keys, kind="stable")
    counts = np.concatenate([counts for _, counts in tallies])
    place, _ = run_out(counts[order], wanted)
    key = int(keys[order[place]])
    wanted -= int(counts[keys > key].sum())
    ties = np.array([counts[keys == key].sum() for keys, counts in tallies])
    return Cut(key, *run_out(ties, wanted))
