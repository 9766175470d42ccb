"""The block kernels of parameter competition (PCB): scores of task vectors' elements, and the weighted mean.

Compiled where possible; the torch versions (torch_competition.py) give the same bytes, and serve float64
storage. All is float32 but for sums: the scores only compare elements with each other.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span, address_of
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.blocks import NATIVE_TARGETS
from merge_models.merge.kernels.compiled import DOUBLE, FLOAT, addresses, place, type_of

Range = tuple[float, float]
"""From where to where, float32 numbers."""

_kept = threading.local()


def scores(sources: Sequence[Span], base: Span, sizes: Sequence[Range]) -> list[Span]:
    """Scores ``exp(N (s^2 - 1)) * tanh(t_i * sum_j t_j)`` of each parent's elements; negative ones are 0.

    The size ``s`` is that of the element of task vector ``t_i``, scaled from its range to [0, 1].

    Args:
        sources: N parents.
        base: the base.
        sizes: the range of each parent's sizes; those beyond are taken for its ends.

    Returns:
        N spans of float32, good until a thread asks for the next.
    """
    library = compiled.library_for(*sources, base)
    if library is None:
        from merge_models.merge.kernels import torch_competition

        return torch_competition.scores(sources, base, sizes)
    out = _room(len(sources), base.count)
    low, high = _floats(sizes)
    compiled.check(
        library.merge_models_scores(
            *compiled.sources(sources), *place(base), low, high, base.count, addresses(list(out))
        )
    )
    return [Span(row.view(np.uint8), BY_CODE["F32"]) for row in out]


def _room(number: int, count: int) -> np.ndarray:
    """A thread's own scratch memory, kept for its next block: fresh memory costs more than its use."""
    room: np.ndarray | None = getattr(_kept, "room", None)
    if room is None or room.shape[0] < number or room.shape[1] < count:
        room = _kept.room = np.empty((number, count), np.float32)
    return room[:number, :count]


def compete_into(
    sources: Sequence[Span],
    base: Span,
    sizes: Sequence[Range],
    marks: Sequence[Range],
    weights: Sequence[float],
    scale: float,
    out: Span,
) -> int:
    """Writes ``base + scale * sum_i s_i w_i t_i / sum_i s_i`` into ``out``: float64 sums, rounded once.

    The shares ``s_i`` are the parents' scores, scaled from their ranges to [0, 1] and more; scores of 0, and
    those below their range, have none. Where nobody has one, the result is the base.

    Args:
        sources: N parents.
        base: the base.
        sizes: the range of each parent's sizes; elements beyond are brought to its ends.
        marks: the range of each parent's scores.
        weights: ``w``.
        scale: of the mean.
        out: as many elements as the base has.

    Returns:
        ``NOT_FINITE`` where a source is NaN or Inf, ``OVERFLOW`` where only what is written is, else 0.
    """
    library = compiled.library_for(*sources, base)
    if library is None or out.dtype.code not in NATIVE_TARGETS:
        from merge_models.merge.kernels import torch_competition

        return torch_competition.compete_into(sources, base, sizes, marks, weights, scale, out)
    ranges = [*_floats(sizes), *_floats(marks)]
    flags = library.merge_models_compete(
        *compiled.sources(sources), *place(base), (compiled.POINTER * 4)(*map(_address, ranges)),
        (DOUBLE * len(weights))(*weights), scale, base.count, address_of(out.data), type_of(out),
    )  # fmt: skip
    compiled.check(flags < 0)
    return NOT_FINITE if flags & 1 else OVERFLOW if flags else 0


def _floats(ranges: Sequence[Range]):
    """The ranges' lower and upper ends, as a kernel reads them."""
    return tuple((FLOAT * len(ranges))(*ends) for ends in zip(*ranges, strict=True))


def _address(array) -> int:
    return ctypes.addressof(array)
