"""Reads pieces of sources, and holds what a survey has read for its later rounds and for combining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from merge_models.merge.checkpoint.source import Source
from merge_models.merge.held import HeldBlocks
from merge_models.merge.kernels.blocks import Span
from merge_models.merge.plan import Ref, TensorPlan
from merge_models.merge.strategies.base import Block
from merge_models.merge.strategies.samples import RUN, run_starts, thinned
from merge_models.merge.work import Piece

Watch = Callable[[TensorPlan, int, int, np.ndarray], None]


class Buffers:
    """A worker's reusable memory, one array per use, grown to the largest block seen."""

    def __init__(self) -> None:
        self._arrays: dict[int | str, np.ndarray] = {}

    def get(self, use: int | str, nbytes: int) -> np.ndarray:
        array = self._arrays.get(use)
        if array is None or array.nbytes < nbytes:
            array = self._arrays[use] = np.empty(nbytes, dtype=np.uint8)
        return array


@dataclass(frozen=True)
class _Held:
    """A piece's sources, and the buffers that were lent for them."""

    spans: list[Span]
    lent: list[np.ndarray]


class BlockReader:
    """Reads a plan's sources; safe to use from any thread, for different pieces."""

    def __init__(self, models: Sequence[Source], held_bytes: int, watch: Watch | None) -> None:
        self._models, self._watched = models, watch
        self._memory = HeldBlocks(held_bytes)
        self._held: dict[tuple[str, int], _Held] = {}

    def to_combine(self, piece: Piece, buffers: Buffers) -> list[Span]:
        """A piece's sources, for the last time; each part is shown to ``watch``."""
        held = self._held.get(_place(piece))
        if held is None:
            return [self._into(piece, use, buffers, shown=True) for use in range(len(piece.tensor.sources()))]
        for use, span in enumerate(held.spans):
            self._show(piece, use, span)
        return held.spans

    def to_survey(self, piece: Piece, buffers: Buffers) -> list[Span]:
        """A piece's sources, which are held from the first round on in which there is room for them."""
        held = self._hold(piece)
        if held is None:
            return [self._into(piece, use, buffers) for use in range(len(piece.tensor.sources()))]
        return held

    def to_sample(self, piece: Piece, every: int, seed: int) -> Block:
        """A sample of a piece: of what is held, else no more than it is read from the files."""
        held = self._hold(piece)
        if held is not None:
            return thinned(piece.block(held, seed), every)
        starts = run_starts(piece.count, piece.number, every)
        spans = [self._runs(ref, piece.start + starts) for ref in piece.tensor.sources()]
        return piece.block(spans, seed, piece.start + starts)

    def release(self, piece: Piece) -> None:
        """Lets go of what is held of a piece."""
        held = self._held.pop(_place(piece), None)
        if held is not None:
            self._memory.give_back(held.lent)

    def _hold(self, piece: Piece) -> list[Span] | None:
        place, sources = _place(piece), piece.tensor.sources()
        if place not in self._held:
            sizes = [piece.count * ref.info.dtype.size for ref in sources]
            if not self._memory.admit(sum(sizes)):
                return None
            lent = [self._memory.lend(nbytes) for nbytes in sizes]
            pairs = zip(sources, lent, strict=True)
            spans = [self._read(ref, piece.start, piece.stop, buffer) for ref, buffer in pairs]
            self._held[place] = _Held(spans, lent)
        return self._held[place].spans

    def _into(self, piece: Piece, use: int, buffers: Buffers, shown: bool = False) -> Span:
        ref = piece.tensor.sources()[use]
        buffer = buffers.get(use, piece.count * ref.info.dtype.size)
        span = self._read(ref, piece.start, piece.stop, buffer)
        if shown:
            self._show(piece, use, span)  # now, while it is in the processor's cache
        return span

    def _read(self, ref: Ref, start: int, stop: int, buffer: np.ndarray) -> Span:
        size = ref.info.dtype.size
        data = self._models[ref.model].read(ref.info, start * size, stop * size, buffer)
        return Span(data, ref.info.dtype)

    def _runs(self, ref: Ref, starts: np.ndarray) -> Span:
        """Runs that begin at these elements, in new memory."""
        size = RUN * ref.info.dtype.size
        out = np.empty(size * len(starts), np.uint8)
        for k, start in enumerate(starts.tolist()):
            place = out[k * size : (k + 1) * size]
            data = self._read(ref, start, start + RUN, place).data
            if data.ctypes.data != place.ctypes.data:
                place[:] = data
        return Span(out, ref.info.dtype)

    def _show(self, piece: Piece, use: int, span: Span) -> None:
        if self._watched is not None:
            self._watched(piece.tensor, use, piece.start * span.dtype.size, span.data)


def _place(piece: Piece) -> tuple[str, int]:
    return piece.tensor.name, piece.start
