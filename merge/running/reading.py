"""Reads the inputs of pieces, and holds what a survey has read for its later rounds and for writing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Inputs
from merge_models.merge.contract.span import Span, address_of
from merge_models.merge.kernels.selection.samples import RUN, run_starts, thinned
from merge_models.merge.planning.task import Ref, Task
from merge_models.merge.running.held import HeldBlocks
from merge_models.merge.running.pieces import Piece

Watch = Callable[[Task, int, int, np.ndarray], None]


class Buffers:
    """A worker's reusable memory, one array per use, grown to the largest block seen."""

    def __init__(self) -> None:
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._holds: dict[Hashable, tuple[str, Span]] = {}

    def get(self, use: Hashable, nbytes: int) -> np.ndarray:
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
            uses = range(len(piece.task.reads))
            return _by_role(piece, [self._into(piece, use, buffers, shown=True) for use in uses])
        if self._watched is not None:
            for use, span in enumerate(held.spans):
                self._show(piece, use, _part(piece, use)[0], span)
        return _by_role(piece, held.spans)

    def to_survey(self, piece: Piece, buffers: Buffers) -> Inputs[Span]:
        """Returns a piece's inputs; they are held from the first round on that has room for them."""
        held = self._hold(piece)
        uses = range(len(piece.task.reads))
        return _by_role(piece, held or [self._into(piece, use, buffers) for use in uses])

    def to_sample(self, piece: Piece, every: int) -> Block:
        """Returns a sample of a piece: of what is held, else no more than it is read from the files."""
        held = self._hold(piece)
        if held is not None:
            return thinned(piece.block(_by_role(piece, held)), every)
        starts = run_starts(piece.count, piece.number, every)
        reads = enumerate(piece.task.reads)
        spans = [self._runs(read.ref, _part(piece, use)[0] + starts) for use, read in reads]
        return piece.sample(_by_role(piece, spans), piece.start + starts)

    def release(self, piece: Piece) -> None:
        """Lets go of what is held of a piece."""
        held = self._held.pop(piece.place, None) if self._held else None
        if held is not None:
            self._memory.give_back(held.lent)

    def _hold(self, piece: Piece) -> list[Span] | None:
        place = piece.place
        held = self._held.get(place)
        if held is None:
            reads, parts = piece.task.reads, [_part(piece, use) for use in range(len(piece.task.reads))]
            lent = self._memory.lend(
                [
                    (stop - start) * read.ref.info.dtype.size
                    for read, (start, stop) in zip(reads, parts, strict=True)
                ]
            )
            if lent is None:
                return None
            inputs = zip(reads, parts, lent, strict=True)
            spans = [self._elements(read.ref, *part, buffer) for read, part, buffer in inputs]
            held = self._held[place] = _Held(spans, lent)
        return held.spans

    def _into(self, piece: Piece, use: int, buffers: Buffers, shown: bool = False) -> Span:
        ref, _, is_whole = piece.task.reads[use]
        start, stop = _part(piece, use)
        span = buffers.held(use, piece.task.name) if is_whole else None
        if span is None:
            span = self._elements(ref, start, stop, buffers.get(use, (stop - start) * ref.info.dtype.size))
            if is_whole:
                buffers.hold(use, piece.task.name, span)
        if shown:
            self._show(piece, use, start, span)  # now, while it is in the processor's cache
        return span

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
            if address_of(data) != address_of(place):
                place[:] = data
        return Span(out, ref.info.dtype)

    def _show(self, piece: Piece, use: int, start: int, span: Span) -> None:
        """Shows a part of an input to ``watch``; what every piece sees whole only with the first."""
        if self._watched is not None and not (piece.start and piece.task.reads[use].is_whole):
            self._watched(piece.task, use, start * span.dtype.size, span.data)


def _part(piece: Piece, use: int) -> tuple[int, int]:
    """The elements of an input, by its number, that a piece needs: all, where every piece sees the whole."""
    _, count, is_whole = piece.task.reads[use]
    return (0, count) if is_whole else piece.task.part(count, piece.start, piece.stop)


def _by_role(piece: Piece, spans: Sequence[Span]) -> Inputs[Span]:
    return piece.task.inputs.refill(iter(spans))
