"""What a worker does: it measures a piece for a survey, or writes it. Safe to use from any thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.contract.case import Inputs
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, UNEQUAL, Span
from merge_models.merge.contract.strategy import class_text
from merge_models.merge.errors import MergeError, NonFiniteError, PlanError
from merge_models.merge.kernels.blocks import is_finite
from merge_models.merge.kernels.rounding import is_narrow, rounding_key
from merge_models.merge.lazy import LazyModule
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import BLOCK_ELEMENTS, Task
from merge_models.merge.running.options import RunOptions
from merge_models.merge.running.outputs import BlockOutput
from merge_models.merge.running.pieces import Piece, Sink
from merge_models.merge.running.reading import BlockReader, Buffers
from merge_models.merge.running.survival import EVERY

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Step:
    """One thing to do, of which nothing else has to be known: engines may send it anywhere.

    Attributes:
        piece: a block of a task.
        passing: what is measured; None where the block is written.
        survey: what the task's survey returned, where it is written.
    """

    piece: Piece
    passing: Pass | None = None
    survey: Any = None


Samples = dict[str, list[tuple[int, np.ndarray]]]
"""By output, what rounding left of sampled changes: (elements, sums)."""


@dataclass(frozen=True)
class Done:
    """What came of a step.

    Attributes:
        moments: a piece's part of a survey's round.
        samples: what was measured of what was written.
        nbytes: how many bytes were written.
    """

    moments: Moments = ()
    samples: Samples = field(default_factory=dict)
    nbytes: int = 0


class Hands:
    """Performs steps of one plan.

    Args:
        plan: the plan.
        sink: where merged bytes go.
        options: how.
    """

    def __init__(self, plan: Plan, sink: Sink, options: RunOptions) -> None:
        self._models, self._sink, self._options = plan.models, sink, options
        self._reader = BlockReader(plan.models, options.held_bytes, options.watch)

    def perform(self, step: Step, buffers: Buffers) -> Done:
        """Does one step.

        Raises:
            MergeError: an input cannot be read or holds NaN or Inf, the output cannot be written, or the
                task's kernel breaks its contract.
        """
        strategy = step.piece.task.strategy
        try:
            if step.passing is None:
                return self._write(step.piece, step.survey, buffers)
            return self._measure(step.passing, step.piece, buffers)
        except (MergeError, MemoryError, OSError):
            raise
        except Exception as failure:
            if strategy is None or type(strategy).__module__.startswith("merge_models."):
                raise
            raise MergeError(
                f"tensor '{printable(step.piece.task.name)}': {class_text(type(strategy))} failed:"
                f" {type(failure).__name__}: {printable(str(failure), 300)}; mend its kernel"
            ) from failure

    def release(self, piece: Piece) -> None:
        """Lets go of what is held of a piece that is finished."""
        self._reader.release(piece)

    def _measure(self, passing: Pass, piece: Piece, buffers: Buffers) -> Done:
        if passing.every is not None:
            return Done(passing.measure(self._reader.to_sample(piece, passing.every)))
        spans = self._reader.to_survey(piece, buffers)
        moments = passing.measure(piece.block(spans))
        if not all(map(_is_finite, moments)):
            self._check_finite(piece.task, spans)
        return Done(moments)

    def _write(self, piece: Piece, survey: Any, buffers: Buffers) -> Done:
        task = piece.task
        spans = self._reader.to_write(piece, buffers)
        if task.kernel.refuses_nonfinite:
            self._check_finite(task, spans)
        outputs = [self._output(piece, spans, number, buffers) for number in range(len(task.outputs))]
        assert task.kernel.write is not None, "only fits have no outputs"
        try:
            flags = task.kernel.write(piece.block(spans), survey, outputs)
        except PlanError as error:
            raise PlanError(f"tensor '{printable(task.name)}': {_maker(task)}{error}") from None
        self._check_flags(flags, task, spans)
        samples, nbytes = {}, 0
        for output in outputs:
            if not output.is_filled:
                raise PlanError(
                    f"tensor '{printable(task.name)}': {_maker(task)}left '{printable(output.spec.name)}'"
                    " unwritten; fill every output of the kernel"
                )
            data = output.span.data
            self._sink.write(output.spec.name, output.start * output.spec.dtype.size, data)
            nbytes += data.nbytes
            if output.samples:
                samples[output.spec.name] = output.samples
        self._reader.release(piece)
        return Done(samples=samples, nbytes=nbytes)

    def _output(self, piece: Piece, spans: Inputs[Span], number: int, buffers: Buffers) -> BlockOutput:
        task, options = piece.task, self._options
        spec = task.outputs[number]
        start, stop = task.part(spec.count, piece.start, piece.stop)
        first, last = start * spec.dtype.size, stop * spec.dtype.size
        data = self._sink.buffer(spec.name, first, last, buffers.get(("out", number), last - first))
        narrow = is_narrow(spec.dtype)
        draws = narrow and options.rounding == "stochastic"
        sampled = narrow and piece.start // BLOCK_ELEMENTS % EVERY == 0
        return BlockOutput(
            spec,
            start,
            Span(data, spec.dtype),
            buffers,
            rounding_key(task.case.seed, spec.name, start) if draws else None,
            _reference(spans, stop - start) if sampled else None,
            options.on_nonfinite == "keep",
        )

    def _check_finite(self, task: Task, spans: Inputs[Span]) -> None:
        if self._options.on_nonfinite == "error" and not all(map(is_finite, spans)):
            self._check_flags(NOT_FINITE, task, spans)

    def _check_flags(self, flags: int, task: Task, spans: Inputs[Span]) -> None:
        if flags & UNEQUAL:
            raise PlanError(self._unequal(task, spans.parents))
        if not flags or self._options.on_nonfinite == "keep":
            return
        for ref, span in zip(task.inputs, spans, strict=True):
            if not is_finite(span):
                raise NonFiniteError(
                    f"{self._models[ref.model].label}: tensor '{printable(task.name)}' holds NaN or Inf;"
                    " repair it, or keep it (--on-nonfinite keep, on_nonfinite='keep')"
                )
        assert flags & (NOT_FINITE | OVERFLOW)
        raise NonFiniteError(
            f"tensor '{printable(task.name)}': merged values do not fit {task.dtype.torch_name};"
            " choose a wider dtype (bfloat16, float32), or keep it"
            " (--on-nonfinite keep, on_nonfinite='keep')"
        )

    def _unequal(self, task: Task, spans: Sequence[Span]) -> str:
        other = next(n for n, span in enumerate(spans) if not np.array_equal(span.data, spans[0].data))
        first, second = (self._models[task.parents[number].model].label for number in (0, other))
        return (
            f"tensor '{printable(task.name)}' ({task.dtype.code}) differs between {first} and {second};"
            " whole numbers cannot be merged: make them equal"
        )


def _maker(task: Task) -> str:
    """Who made a kernel, as a message begins that speaks of it."""
    return "" if task.strategy is None else f"{class_text(type(task.strategy))} "


def _reference(spans: Inputs[Span], count: int) -> Span | None:
    """What the changes of an output are measured against: the base, or the first of several parents."""
    if spans.base is None and len(spans.parents) < 2:
        return None
    reference = spans.base or spans.parents[0]
    return reference if reference.count == count else None


def _is_finite(part: Any) -> bool:
    """Whether a part of a survey, if it is numbers, has no NaN or Inf in it."""
    if isinstance(part, np.ndarray):
        return part.dtype.kind != "f" or bool(np.isfinite(part).all())
    return not hasattr(part, "is_floating_point") or bool(torch.isfinite(part).all())
