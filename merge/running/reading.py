"""Reads the inputs of pieces, and holds what a survey has read for its later rounds and for writing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Inputs
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.selection.samples import RUN, run_starts, thinned
from merge_models.merge.planning.task import Ref, Task
from merge_models.merge.running.held import HeldBlocks
from merge_models.merge.running.pieces import Piece

Watch = Callable[[Task, int, int, np.ndarray], None]


class Buffers:
    """A worker's reusable memory, one array per use, grown to the largest block seen."""

    def __init__(self) -> None:
        self._arrays: dict[int | str, np.ndarray] = {}
        self._holds: dict[int | str, tuple[str, Span]] = {}

    def get(self, use: int | str, nbytes: int) -> np.ndarray:
        """Returns memory of so many bytes at least; its content is of no use any more."""
        if self._holds:
            self._holds.pop(use, None)
        array = self._arrays.get(use)
        if array is None or array.nbytes < nbytes:
            array = self._arrays[use] = np.empty(nbytes, dtype=np.uint8)
        return array

    def held(self, use: int, task: str) -> Span | None:
        """Returns an input that was kept whole for the same task, or None."""
        owner, span = self._holds.get(use, ("", None))
        return span if owner == task else None

    def hold(self, use: int, task: str, span: Span) -> None:
        """Keeps an input whole until its memory is used anew."""
        self._holds[use] = (task, span)


class _Part(NamedTuple):
    """A piece's part of one input.

    Attributes:
        use: the number of the input in its task.
        ref: the tensor.
        start, stop: elements of it.
        is_whole: whether every piece of the task sees the same.
    """

    use: int
    ref: Ref
    start: int
    stop: int
    is_whole: bool

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.ref.info.dtype.size


@dataclass(frozen=True)
class _Held:
    """A piece's inputs, and the buffers that were lent for them."""

    spans: list[Span]
    lent: list[np.ndarray]


class BlockReader:
    """Reads a plan's inputs; safe to use from any thread, for different pieces."""

    def __init__(self, models: Sequence[Source], held_bytes: int, watch: Watch | None) -> None:
        self._models, self._watched = models, watch
        self._memory = HeldBlocks(held_bytes)
        self._held: dict[tuple[str, int], _Held] = {}

    def to_write(self, piece: Piece, buffers: Buffers) -> Inputs[Span]:
        """Returns a piece's inputs, for the last time; each part is shown to ``watch``."""
        held = self._held.get(piece.place) if self._held else None
        if held is None:
            return _by_role(piece, [self._into(piece, part, buffers, shown=True) for part in _parts(piece)])
        for part, span in zip(_parts(piece), held.spans, strict=True):
            self._show(piece, part, span)
        return _by_role(piece, held.spans)

    def to_survey(self, piece: Piece, buffers: Buffers) -> Inputs[Span]:
        """Returns a piece's inputs; they are held from the first round on that has room for them."""
        held = self._hold(piece)
        return _by_role(piece, held or [self._into(piece, part, buffers) for part in _parts(piece)])

    def to_sample(self, piece: Piece, every: int) -> Block:
        """Returns a sample of a piece: of what is held, else no more than it is read from the files."""
        held = self._hold(piece)
        if held is not None:
            return thinned(piece.block(_by_role(piece, held)), every)
        starts = run_starts(piece.count, piece.number, every)
        spans = [self._runs(part.ref, part.start + starts) for part in _parts(piece)]
        return piece.sample(_by_role(piece, spans), piece.start + starts)

    def release(self, piece: Piece) -> None:
        """Lets go of what is held of a piece."""
        held = self._held.pop(piece.place, None) if self._held else None
        if held is not None:
            self._memory.give_back(held.lent)

    def _hold(self, piece: Piece) -> list[Span] | None:
        if piece.place not in self._held:
            parts = list(_parts(piece))
            if not self._memory.admit(sum(part.nbytes for part in parts)):
                return None
            lent = [self._memory.lend(part.nbytes) for part in parts]
            spans = [self._read(part, buffer) for part, buffer in zip(parts, lent, strict=True)]
            self._held[piece.place] = _Held(spans, lent)
        return self._held[piece.place].spans

    def _into(self, piece: Piece, part: _Part, buffers: Buffers, shown: bool = False) -> Span:
        span = buffers.held(part.use, piece.task.name) if part.is_whole else None
        if span is None:
            span = self._read(part, buffers.get(part.use, part.nbytes))
            if part.is_whole:
                buffers.hold(part.use, piece.task.name, span)
        if shown:
            self._show(piece, part, span)  # now, while it is in the processor's cache
        return span

    def _read(self, part: _Part, buffer: np.ndarray) -> Span:
        return self._elements(part.ref, part.start, part.stop, buffer)

    def _elements(self, ref: Ref, start: int, stop: int, buffer: np.ndarray) -> Span:
        size = ref.info.dtype.size
        data = self._models[ref.model].read(ref.info, start * size, stop * size, buffer)
        return Span(data, ref.info.dtype)

    def _runs(self, ref: Ref, starts: np.ndarray) -> Span:
        """Runs that begin at these elements, in new memory."""
        size = RUN * ref.info.dtype.size
        out = np.empty(size * len(starts), np.uint8)
        for k, start in enumerate(starts.tolist()):
            place = out[k * size : (k + 1) * size]
            data = self._elements(ref, start, start + RUN, place).data
            if data.ctypes.data != place.ctypes.data:
                place[:] = data
        return Span(out, ref.info.dtype)

    def _show(self, piece: Piece, part: _Part, span: Span) -> None:
        """Shows a part of an input to ``watch``; what every piece sees whole only with the first."""
        if self._watched is not None and not (part.is_whole and piece.start):
            self._watched(piece.task, part.use, part.start * span.dtype.size, span.data)


def _parts(piece: Piece) -> Iterator[_Part]:
    for use, (ref, count, is_whole) in enumerate(piece.task.reads):
        start, stop = (0, count) if is_whole else piece.task.part(count, piece.start, piece.stop)
        yield _Part(use, ref, start, stop, is_whole)


def _by_role(piece: Piece, spans: Sequence[Span]) -> Inputs[Span]:
    return piece.task.inputs.refill(iter(spans))
