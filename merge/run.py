"""The one loop: reads blocks, lets strategies survey and combine them, writes them in place.

Any thread may take any block at any time; results do not depend on it: blocks have fixed boundaries and
survey totals are folded in block order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import iadd
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.threads import one_torch_thread
from merge_models.merge.errors import MergeError, NonFiniteError, PlanError
from merge_models.merge.held import HOLD_BYTES, HeldBlocks
from merge_models.merge.kernels import Span, gram_moments, is_finite, native_name, weighted_sum
from merge_models.merge.kernels.blocks import NATIVE_TARGETS, NATIVE_TYPES, NOT_FINITE, OVERFLOW
from merge_models.merge.kernels.rounding import is_narrow, round_into, rounding_key, survival
from merge_models.merge.lazy import LazyModule
from merge_models.merge.plan import BLOCK_ELEMENTS, Plan, TensorPlan, is_fused
from merge_models.merge.strategies.base import (
    AbstractKernelStrategy,
    AbstractSpanStrategy,
    AbstractStrategy,
    Block,
    Figures,
    FixedMixture,
    Grain,
    Mixture,
    Pass,
)
from merge_models.merge.strategies.near_points import NearGram
from merge_models.merge.survival import EVERY, SAMPLED, Survival

if TYPE_CHECKING:
    import torch

    from merge_models.manifolds.span import Gram
else:
    torch = LazyModule("torch")


GRACE_SECONDS = 0.5
"""How long a merge that is stopped waits for blocks in work; a large matrix may take much longer."""

_COUNTER = "num_batches_tracked"
"""Steps that a batch normalisation has seen: the first model's stand, since no result depends on them."""

SMALL_PARTS = 1 << 20
"""Bytes of parts of a survey that may wait to be folded, whatever their number."""


class Sink(Protocol):
    """Where merged bytes go."""

    def buffer(self, name: str, start: int, stop: int, scratch: np.ndarray) -> np.ndarray:
        """Memory for bytes ``start`` to ``stop`` of a tensor: the place itself, or ``scratch``."""
        ...

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Takes bytes that were put into ``buffer``."""
        ...

    def finish(self, name: str, figures: Figures) -> None:
        """Hears that all of a tensor has been written, and what is to be told of it."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """How a plan is carried out; of all this only ``seed`` and ``rounding`` change the result.

    Attributes:
        threads: workers.
        on_nonfinite: ``error`` stops at a NaN or Inf, ``keep`` lets it through.
        seed: key of all randomness.
        progress: called with the number of output bytes just written, from any worker.
        held_bytes: of sources that may be held between survey and combining.
        rounding: ``nearest``, or ``stochastic`` where the output is narrower than float32.
        finished: names of tensors that are there already and are not written again.
        watch: called, from any worker, with a tensor, the number of one of its sources, and the place and
            bytes of a part of that source as it was read; once for each part of what is written.
    """

    threads: int = 1
    on_nonfinite: str = "error"
    seed: int = 0
    progress: Callable[[int], None] | None = None
    rounding: str = "nearest"
    held_bytes: int = HOLD_BYTES
    finished: frozenset[str] = frozenset()
    watch: Callable[[TensorPlan, int, int, np.ndarray], None] | None = None


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


class _Buffers:
    """A worker's reusable memory, one array per use, grown to the largest block seen."""

    def __init__(self) -> None:
        self._arrays: dict[int | str, np.ndarray] = {}

    def get(self, use: int | str, nbytes: int) -> np.ndarray:
        array = self._arrays.get(use)
        if array is None or array.nbytes < nbytes:
            array = self._arrays[use] = np.empty(nbytes, dtype=np.uint8)
        return array


@dataclass
class _Job:
    """Tensors that share one survey: one tensor, or a whole model for strategies of model scope."""

    tensors: list[TensorPlan]
    survey: Any = None
    passing: Pass | None = None
    rounds: Any = None
    total: Any = None
    parts: dict[int, Any] = field(default_factory=dict)
    folded: int = 0
    left: int = 0
    held: dict[int, list[Span]] = field(default_factory=dict)
    lent: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def blocks(self) -> list[tuple[TensorPlan, int, int]]:
        return [(tensor, *block) for tensor in self.tensors for block in tensor.blocks()]


_Task = tuple[_Job, int, TensorPlan, int, int]


class _Run:
    """State of one execution: a queue of tasks that workers take, and jobs that open as it drains."""

    def __init__(self, plan: Plan, sink: Sink, options: RunOptions) -> None:
        self.figures: dict[str, Figures] = {}
        self._models, self._sink, self._options = plan.models, sink, options
        self._needs_torch = needs_torch(plan)
        self._waiting = deque(_jobs(plan, options.finished))
        self._left: dict[str, int] = {}
        self._ready: deque[_Task] = deque()
        self._running = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._memory = HeldBlocks(options.held_bytes)
        self._most_parts = max(1, options.threads)
        self._survival = Survival()

    def told(self, tensor: TensorPlan) -> Figures:
        """What is worth telling of a tensor that is done."""
        found = self._survival.figures(tensor.name, tensor.count)
        return {**self.figures.get(tensor.name, {}), **found}

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
        buffers = _Buffers()
        try:
            if self._needs_torch:
                torch.set_num_threads(1)  # the limit of the math library below torch is one of each thread
            while (task := self._take()) is not None:
                self._perform(task, buffers)
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
        first = job.tensors[0]
        job.rounds = _survey(first, self._options.seed)
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
                figures = _figures(tensor.strategy, tensor, job.survey, self._options.seed)
                if figures:
                    self.figures[tensor.name] = figures
        self._enqueue(job)

    def _enqueue(self, job: _Job) -> None:
        tasks = [(job, number, *block) for number, block in enumerate(job.blocks())]
        if job.passing is None:
            tasks = self._unfinished(job, tasks)
        job.left = len(tasks)
        if not tasks and job.passing is not None:
            raise MergeError(f"tensor '{job.tensors[0].name}': nothing to survey in an empty tensor")
        with self._changed:
            self._ready.extendleft(reversed(tasks))
            self._changed.notify_all()

    def _unfinished(self, job: _Job, tasks: list[_Task]) -> list[_Task]:
        """The tasks of a job's tensors that are yet to be written; counts them by tensor."""
        kept = []
        for task in tasks:
            number, name = task[1], task[2].name
            if name in self._options.finished:
                job.held.pop(number, None)
                self._memory.give_back(job.lent.pop(number, []))
            else:
                kept.append(task)
                self._left[name] = self._left.get(name, 0) + 1
        return kept

    def _perform(self, task: _Task, buffers: _Buffers) -> None:
        job, number, tensor, start, stop = task
        spans = self._read(job, number, tensor, start, stop, buffers)
        if job.passing is None:
            self._combine(job, number, tensor, spans, start, stop, buffers)
            job.held.pop(number, None)
            self._memory.give_back(job.lent.pop(number, []))
            self._count_down(tensor)
        else:
            part = _measure(job.passing, tensor, spans, start, number, self._options.seed)
            if isinstance(job.passing, _GramPass) and not np.isfinite(part[0]).all():
                self._check_inputs(tensor, spans)
            if self._fold(job, number, part):
                del part
                self._advance(job, job.total)
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

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

    def _read(
        self, job: _Job, number: int, tensor: TensorPlan, start: int, stop: int, buffers: _Buffers
    ) -> list[Span]:
        """The block's sources: read, or held since the first round in which there was room for them."""
        if number in job.held:
            for use, span in enumerate(job.held[number]):
                self._watch(job, tensor, use, start, span.data)
            return job.held[number]
        sources = tensor.sources()
        sizes = [(stop - start) * ref.info.dtype.size for ref in sources]
        holds = job.passing is not None and self._memory.admit(sum(sizes))
        lent = [self._memory.lend(nbytes) for nbytes in sizes] if holds else []
        spans = []
        for use, (ref, nbytes) in enumerate(zip(sources, sizes, strict=True)):
            at, buffer = start * ref.info.dtype.size, lent[use] if holds else buffers.get(use, nbytes)
            data = self._models[ref.model].read(ref.info, at, at + nbytes, buffer)
            spans.append(Span(data, ref.info.dtype))
            self._watch(job, tensor, use, start, data)  # now, while it is in the processor's cache
        if holds:
            job.held[number], job.lent[number] = spans, lent
        return spans

    def _watch(self, job: _Job, tensor: TensorPlan, use: int, start: int, data: np.ndarray) -> None:
        """Shows a part of a source that is about to be combined."""
        if job.passing is None and self._options.watch:
            self._options.watch(tensor, use, start * tensor.sources()[use].info.dtype.size, data)

    def _combine(
        self,
        job: _Job,
        number: int,
        tensor: TensorPlan,
        spans: list[Span],
        start: int,
        stop: int,
        buffers: _Buffers,
    ) -> None:
        size = tensor.dtype.size
        scratch = buffers.get("out", (stop - start) * size)
        data = self._sink.buffer(tensor.name, start * size, stop * size, scratch)
        out = Span(data, tensor.dtype)
        if tensor.action == "copy":
            self._copy(tensor, spans, out)
        elif _is_mixed(tensor.strategy):
            self._mix(job, number, tensor, spans, start, out, buffers)
        else:
            self._check_inputs(tensor, spans)
            block = _block(tensor, spans, start, number, self._options.seed)
            assert tensor.strategy is not None
            merged = tensor.strategy.combine(block, job.survey).reshape(-1)
            if self._draws(tensor):
                self._round(tensor, start, merged.float().contiguous().numpy(), out)
            else:
                out.tensor().copy_(merged)
            if self._samples(tensor, start):
                self._sample(tensor, merged[:SAMPLED].float().numpy(), spans, out)
            if self._options.on_nonfinite == "error" and not is_finite(out):
                self._check_flags(OVERFLOW, tensor, spans)
        self._sink.write(tensor.name, start * size, out.data)
        if self._options.progress:
            self._options.progress(out.data.nbytes)

    def _mix(
        self,
        job: _Job,
        number: int,
        tensor: TensorPlan,
        spans: list[Span],
        start: int,
        out: Span,
        buffers: _Buffers,
    ) -> None:
        """Combines by a block kernel, from storage to storage at once."""
        mix = _kernel(tensor, job.survey, spans, start, number, self._options.seed)
        if self._draws(tensor):
            wide = Span(buffers.get("wide", 4 * out.count)[: 4 * out.count], BY_CODE["F32"])
            flags = mix(spans, wide)
            flags |= self._round(tensor, start, wide.data.view(np.float32), out)
        else:
            flags = mix(spans, out)
        self._check_flags(flags, tensor, spans)
        if self._samples(tensor, start):
            parts = [_head(span) for span in spans]
            wide = Span(np.empty(4 * parts[0].count, np.uint8), BY_CODE["F32"])
            mix(parts, wide)
            self._sample(tensor, wide.data.view(np.float32), spans, out)

    def _draws(self, tensor: TensorPlan) -> bool:
        return self._options.rounding == "stochastic" and is_narrow(tensor.dtype)

    def _round(self, tensor: TensorPlan, start: int, values: np.ndarray, out: Span) -> int:
        return round_into(values, out, rounding_key(self._options.seed, tensor.name, start))

    def _samples(self, tensor: TensorPlan, start: int) -> bool:
        """Whether a block shall tell what rounding leaves of changes."""
        return is_narrow(tensor.dtype) and len(tensor.sources()) > 1 and start // BLOCK_ELEMENTS % EVERY == 0

    def _sample(self, tensor: TensorPlan, values: np.ndarray, spans: list[Span], out: Span) -> None:
        """Notes it, for the block's first values before they were rounded."""
        reference = _head(spans[-1 if tensor.base is not None else 0])
        self._survival.add(tensor.name, values.size, survival(values, _head(out), reference))

    def _copy(self, tensor: TensorPlan, spans: list[Span], out: Span) -> None:
        first, *others = (self._models[ref.model] for ref in tensor.parents)
        compared = [] if tensor.name.endswith(_COUNTER) else list(zip(others, spans[1:], strict=True))
        for source, span in compared:
            if not np.array_equal(span.data, spans[0].data):
                raise PlanError(
                    f"tensor '{printable(tensor.name)}' ({tensor.dtype.code}) differs between"
                    f" {first.label} and {source.label}; whole numbers cannot be merged: make them equal"
                )
        out.data[:] = spans[0].data

    def _check_inputs(self, tensor: TensorPlan, spans: list[Span]) -> None:
        if self._options.on_nonfinite == "error" and not all(is_finite(span) for span in spans):
            self._check_flags(NOT_FINITE, tensor, spans)

    def _check_flags(self, flags: int, tensor: TensorPlan, spans: list[Span]) -> None:
        if not flags or self._options.on_nonfinite == "keep":
            return
        for ref, span in zip(tensor.sources(), spans, strict=True):
            if not is_finite(span):
                raise NonFiniteError(
                    f"{self._models[ref.model].label}: tensor '{printable(tensor.name)}' holds NaN or Inf;"
                    " repair it, or keep it (--on-nonfinite keep, on_nonfinite='keep')"
                )
        raise NonFiniteError(
            f"tensor '{printable(tensor.name)}': merged values do not fit {tensor.dtype.torch_name};"
            " choose a wider dtype (bfloat16, float32), or keep it"
            " (--on-nonfinite keep, on_nonfinite='keep')"
        )


def _jobs(plan: Plan, finished: frozenset[str]) -> list[_Job]:
    """Copies first (cheap, and they may stop the merge), then merges; model-wide surveys in one job.

    A model-wide survey needs all of its tensors again while one of them is unfinished.
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
                shared[group] = _Job([])
                jobs.append(shared[group])
            shared[group].tensors.append(tensor)
        else:
            jobs.append(_Job([tensor]))
    return [job for job in copies + jobs if any(t.name not in finished for t in job.tensors)]


@dataclass(frozen=True)
class _GramPass(Pass):
    """The survey of span strategies, measured on storage bytes."""


def _survey(tensor: TensorPlan, seed: int) -> Any:
    strategy = tensor.strategy
    if strategy is None:
        return None
    if isinstance(strategy, AbstractSpanStrategy) and is_fused(strategy):
        return _span_survey(strategy, tensor)
    return strategy.survey(tensor.spec(seed))


def _span_survey(strategy: AbstractSpanStrategy, tensor: TensorPlan) -> Iterator[Pass]:
    mixture = strategy.mixture if tensor.base is None else strategy.mixture_with_base
    if not strategy.needs_gram:
        return mixture(None)
    (moments,) = yield _GramPass(measure=lambda block: ())
    near = NearGram.unpacked(moments, len(tensor.parents), tensor.base is not None)
    quick = strategy.quick(near, tensor.base is not None)
    if quick is not None:
        return quick
    return mixture(_gram_of(torch.from_numpy(moments), len(tensor.parents), tensor.base is not None))


def _gram_of(moments: torch.Tensor, count: int, has_base: bool) -> Gram:
    """Unpacks :func:`gram_moments`; without a base the first parent is the reference, at difference 0."""
    from merge_models.manifolds.span import Gram

    measured = count if has_base else count - 1
    cross = torch.zeros(count, dtype=torch.float64)
    differences = torch.zeros(count, count, dtype=torch.float64)
    first = count - measured
    cross[first:] = moments[1 : 1 + measured]
    rows, columns = torch.triu_indices(measured, measured) + first
    differences[rows, columns] = moments[1 + measured :]
    differences[columns, rows] = moments[1 + measured :]
    return Gram(reference=moments[0], cross=cross, differences=differences)


def _measure(passing: Pass, tensor: TensorPlan, spans: list[Span], start: int, number: int, seed: int) -> Any:
    if isinstance(passing, _GramPass):
        if tensor.base is not None:
            return (gram_moments(spans[-1], spans[:-1]),)
        return (gram_moments(spans[0], spans[1:]),)
    return passing.measure(_block(tensor, spans, start, number, seed))


def _weights(mixture: Mixture | FixedMixture, tensor: TensorPlan) -> list[float]:
    fixed = isinstance(mixture, FixedMixture)
    weights = list(mixture.parents) if fixed else mixture.parents.tolist()
    if tensor.base is not None:
        weights.append(0.0 if mixture.base is None else float(mixture.base))
    return weights


def _figures(strategy: AbstractStrategy | None, tensor: TensorPlan, survey: Any, seed: int) -> Figures:
    if isinstance(survey, Mixture | FixedMixture):
        return survey.figures
    return strategy.figures(tensor.spec(seed), survey) if strategy is not None else {}


def _block(tensor: TensorPlan, spans: list[Span], start: int, number: int, seed: int) -> Block:
    strategy, spec = tensor.strategy, tensor.spec(seed)
    by_rows = strategy is not None and strategy.grain is not Grain.ELEMENT
    columns = tensor.count // max(spec.rows, 1) if by_rows else None
    parents = tuple(spans) if tensor.base is None else tuple(spans[:-1])
    return Block(parents, None if tensor.base is None else spans[-1], start, spec, number, columns)


def _head(span: Span) -> Span:
    return Span(span.data[: SAMPLED * span.dtype.size], span.dtype)


def _is_mixed(strategy: AbstractStrategy | None) -> bool:
    """Whether one block kernel does all of a block's combining."""
    return isinstance(strategy, AbstractKernelStrategy) or (strategy is not None and is_fused(strategy))


def _kernel(
    tensor: TensorPlan, survey: Any, spans: list[Span], start: int, number: int, seed: int
) -> Callable[[list[Span], Span], int]:
    """What writes a block, or its first elements, from sources into an output."""
    strategy = tensor.strategy
    if isinstance(strategy, AbstractKernelStrategy):
        return strategy.mixer(_block(tensor, spans, start, number, seed), survey)
    weights = _weights(survey, tensor)
    return lambda sources, out: weighted_sum(sources, weights, out)
