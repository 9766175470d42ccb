"""The one loop: reads blocks, lets strategies survey and combine them, writes them in place.

Any thread may take any block at any time; results do not depend on it: blocks have fixed boundaries and
survey totals are folded in block order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import iadd
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.checkpoint.threads import one_torch_thread
from merge_models.merge.combining import Combiner
from merge_models.merge.errors import MergeError
from merge_models.merge.kernels.blocks import NATIVE_TARGETS, NATIVE_TYPES, native_name
from merge_models.merge.lazy import LazyModule
from merge_models.merge.plan import Plan, TensorPlan, is_fused
from merge_models.merge.reading import BlockReader, Buffers
from merge_models.merge.strategies.base import AbstractKernelStrategy, AbstractSpanStrategy, Figures, Pass
from merge_models.merge.surveying import GramPass, figures_of, rounds_of
from merge_models.merge.work import Piece, RunOptions, Sink

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

GRACE_SECONDS = 0.5
"""How long a merge that is stopped waits for blocks in work; a large matrix may take much longer."""

SMALL_PARTS = 1 << 20
"""Bytes of parts of a survey that may wait to be folded, whatever their number."""


def execute(plan: Plan, sink: Sink, options: RunOptions) -> dict[str, Figures]:
    """Carries out a plan.

    Returns:
        What strategies found worth telling, by tensor.

    Raises:
        MergeError: a parent cannot be read or holds NaN or Inf, or the output cannot be written.
    """
    run = _Run(plan, sink, options)
    with one_torch_thread() if needs_torch(plan) else nullcontext():
        run.work(max(1, options.threads))
    return {t.name: told for t in plan.tensors if (told := run.told(t))}


def needs_torch(plan: Plan) -> bool:
    """Whether torch computes anything of size: not where all blocks go through the compiled kernels."""
    merged = [tensor for tensor in plan.tensors if tensor.strategy is not None]
    return native_name() == "torch" or not all(_is_native(tensor) for tensor in merged)


def _is_native(tensor: TensorPlan) -> bool:
    strategy = tensor.strategy
    narrow = all(ref.info.dtype.code in NATIVE_TYPES for ref in tensor.sources())
    if isinstance(strategy, AbstractKernelStrategy):
        return narrow and tensor.dtype.code in NATIVE_TARGETS
    if not isinstance(strategy, AbstractSpanStrategy) or not is_fused(strategy):
        return False
    return narrow or not strategy.needs_gram


@dataclass
class _Job:
    """Tensors that share one survey: one tensor, or a whole model for strategies of model scope."""

    tensors: list[TensorPlan]
    shared: bool = False
    survey: Any = None
    passing: Pass | None = None
    rounds: Any = None
    total: Any = None
    parts: dict[int, Any] = field(default_factory=dict)
    folded: int = 0
    left: int = 0

    def pieces(self) -> list[Piece]:
        blocks = [(tensor, *block) for tensor in self.tensors for block in tensor.blocks()]
        return [Piece(tensor, number, *block) for number, (tensor, *block) in enumerate(blocks)]

    @property
    def together(self) -> int:
        """Elements that a survey of the whole model covers; 0 where each tensor has its own."""
        return sum(tensor.count for tensor in self.tensors) if self.shared else 0


_Task = tuple[_Job, Piece]


class _Run:
    """State of one execution: a queue of tasks that workers take, and jobs that open as it drains."""

    def __init__(self, plan: Plan, sink: Sink, options: RunOptions) -> None:
        self.figures: dict[str, Figures] = {}
        self._sink, self._options = sink, options
        self._reader = BlockReader(plan.models, options.held_bytes, options.watch)
        self._combiner = Combiner(plan.models, sink, options)
        self._needs_torch = needs_torch(plan)
        self._waiting = deque(_jobs(plan, options.finished))
        self._left: dict[str, int] = {}
        self._ready: deque[_Task] = deque()
        self._running = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._most_parts = max(1, options.threads)

    def told(self, tensor: TensorPlan) -> Figures:
        """What is worth telling of a tensor that is done."""
        return {**self.figures.get(tensor.name, {}), **self._combiner.survived(tensor)}

    def work(self, threads: int) -> None:
        workers = [threading.Thread(target=self._worker, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(timeout=0.2)
        except BaseException as interruption:
            self._fail(interruption)
            deadline = time.monotonic() + GRACE_SECONDS
            for worker in workers:
                worker.join(timeout=max(deadline - time.monotonic(), 0.0))
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def _worker(self) -> None:
        buffers = Buffers()
        try:
            if self._needs_torch:
                torch.set_num_threads(1)  # the limit of the math library below torch is one of each thread
            while (task := self._take()) is not None:
                self._perform(*task, buffers)
        except BaseException as failure:
            self._fail(failure)

    def _take(self) -> _Task | None:
        with self._changed:
            while self._failure is None:
                if self._ready:
                    self._running += 1
                    return self._ready.popleft()
                if self._waiting:
                    self._open(self._waiting.popleft())
                elif self._running:
                    self._changed.wait()
                else:
                    return None
            return None

    def _open(self, job: _Job) -> None:
        """Starts a job: its survey where it has one, else its combining. Called with the lock held."""
        job.rounds = rounds_of(job.tensors[0], job.together, self._options.seed)
        if job.rounds is None:
            self._enqueue(job)
        else:
            self._advance(job, None)

    def _advance(self, job: _Job, total: Any) -> None:
        """Ends a round. It may think for seconds, so it holds no lock; the job is its caller's alone."""
        job.total, job.folded = None, 0
        try:
            job.passing = job.rounds.send(total)
        except StopIteration as finished:
            job.survey, job.passing = finished.value, None
            for tensor in job.tensors:
                figures = figures_of(tensor, job.survey, self._options.seed)
                if figures:
                    self.figures[tensor.name] = figures
        self._enqueue(job)

    def _enqueue(self, job: _Job) -> None:
        pieces = job.pieces() if job.passing is not None else self._unfinished(job)
        job.left = len(pieces)
        if not pieces and job.passing is not None:
            raise MergeError(f"tensor '{job.tensors[0].name}': nothing to survey in an empty tensor")
        with self._changed:
            self._ready.extendleft((job, piece) for piece in reversed(pieces))
            self._changed.notify_all()

    def _unfinished(self, job: _Job) -> list[Piece]:
        """The pieces of a job's tensors that are yet to be written; counts them by tensor."""
        kept = []
        for piece in job.pieces():
            name = piece.tensor.name
            if name in self._options.finished:
                self._reader.release(piece)
            else:
                kept.append(piece)
                self._left[name] = self._left.get(name, 0) + 1
        return kept

    def _perform(self, job: _Job, piece: Piece, buffers: Buffers) -> None:
        if job.passing is None:
            spans = self._reader.to_combine(piece, buffers)
            self._combiner.combine(piece, spans, job.survey, buffers)
            self._reader.release(piece)
            self._count_down(piece.tensor)
        else:
            part = self._measure(job.passing, piece, buffers)
            if self._fold(job, piece.number, part):
                del part
                self._advance(job, job.total)
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _measure(self, passing: Pass, piece: Piece, buffers: Buffers) -> Any:
        """A piece's part of a round."""
        if passing.every is not None:
            return passing.measure(self._reader.to_sample(piece, passing.every, self._options.seed))
        spans = self._reader.to_survey(piece, buffers)
        if not isinstance(passing, GramPass):
            return passing.measure(piece.block(spans, self._options.seed))
        (moments,) = passing.moments(piece.tensor, spans)
        if not np.isfinite(moments).all():
            self._combiner.check_inputs(piece.tensor, spans)
        return (moments,)

    def _count_down(self, tensor: TensorPlan) -> None:
        with self._changed:
            self._left[tensor.name] -= 1
            is_last = self._left[tensor.name] == 0
        if is_last:
            self._sink.finish(tensor.name, self.told(tensor))

    def _fold(self, job: _Job, number: int, part: Any) -> bool:
        """Adds parts in block order, as they become adjacent; returns whether it was the last.

        Parts may be large matrices: a worker whose part comes too early waits with it. The part that all wait
        for is in work, since blocks are taken in order.
        """
        with self._changed:
            while self._is_crowded(job) and number != job.folded and self._failure is None:
                self._changed.wait()
            job.parts[number] = part
            while job.folded in job.parts:
                part = job.parts.pop(job.folded)
                total = job.total
                job.total = part if total is None else tuple(map(iadd, total, part))
                job.folded += 1
            job.left -= 1
            self._changed.notify_all()
            return job.left == 0

    def _is_crowded(self, job: _Job) -> bool:
        if len(job.parts) < self._most_parts:
            return False
        return sum(array.nbytes for part in job.parts.values() for array in part) > SMALL_PARTS


def _jobs(plan: Plan, finished: frozenset[str]) -> list[_Job]:
    """Copies first (cheap, and they may stop the merge), then merges; model-wide surveys in one job.

    A model-wide survey needs all of its tensors again while one of them is unfinished. It takes them in the
    order of their names, so that what is decided by position does not depend on how files are laid out.
    """
    copies = [_Job([t]) for t in plan.tensors if t.action == "copy"]
    shared: dict[tuple[Any, ...], _Job] = {}
    jobs = []
    for tensor in plan.tensors:
        if tensor.strategy is None or tensor.count == 0:
            continue
        group = tensor.survey_group
        if group is not None:
            if group not in shared:
                shared[group] = _Job([], shared=True)
                jobs.append(shared[group])
            shared[group].tensors.append(tensor)
        else:
            jobs.append(_Job([tensor]))
    for job in shared.values():
        job.tensors.sort(key=lambda tensor: tensor.name)
    return [job for job in copies + jobs if any(t.name not in finished for t in job.tensors)]
