"""Cuts by a sample: it brackets each of them, and one round on everything gathers what is in the brackets.

A bracket that misses its cut is found out by counting, never guessed: :func:`by_sample` then gives up.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from merge_models.merge.kernels.keys import Tally, gather_keys, keys_of
from merge_models.merge.kernels.terms import ALL_KEYS
from merge_models.merge.strategies.base import Block, Moments, Pass
from merge_models.merge.strategies.cuts import NOTHING, Cut, Series, Sizes, Totals, with_edges
from merge_models.merge.strategies.rounds import nth_keys, run_out
from merge_models.merge.strategies.samples import RUN

_DOUBT = 6.0
"""Standard errors on either side of a bracket."""

_POSITIVE = 1 << 19
"""The least key that is told from zero."""

_Window = tuple[int, int]


def by_sample(
    sample: Block, series: Series, sizes: Sizes, elements: int
) -> Generator[Pass, Moments, list[list[Cut]] | None]:
    """The cuts of :func:`merge_models.merge.strategies.select.largest`, or None where a bracket missed."""
    spans, reference = series(sample)
    keys = [keys_of(span, reference) for span in spans]
    taken = len(keys[0])
    if not taken:
        return None
    positive = [round(int((k >= _POSITIVE).sum()) / taken * elements) for k in keys]
    wanted = sizes(Totals(elements, tuple(positive), 0))
    windows = [[_bracket(k, size / elements) for size in row] for k, row in zip(keys, wanted, strict=True)]
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


class _Listed:
    """Parts that are listed, in block order, where other moments are added."""

    nbytes = 0
    """Next to nothing: no worker need wait with it."""

    def __init__(self, part: Any) -> None:
        self.parts = [part]

    def __iadd__(self, later: _Listed) -> _Listed:
        self.parts += later.parts
        return self


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
