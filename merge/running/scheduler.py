"""Which step is next: surveys round by round, then blocks to write.

Workers may take any step at any time; results do not depend on it: blocks have fixed boundaries, and survey
totals are folded in block order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import iadd
from typing import Any

from merge_models.merge.contract.kernel import Figures, Pass
from merge_models.merge.errors import MergeError
from merge_models.merge.planning.task import Fit, Task
from merge_models.merge.running.hands import Done, Hands, Step
from merge_models.merge.running.options import RunOptions
from merge_models.merge.running.pieces import Piece, Sink
from merge_models.merge.running.sending import check_sendable
from merge_models.merge.running.survival import Survival

SMALL_PARTS = 1 << 20
"""Bytes of parts of a survey that may wait to be folded, whatever their number."""


@dataclass
class Job:
    """Tasks that share one survey: one task, or a whole model's."""

    tasks: list[Task]
    receive: Callable[[Any], None] | None = None
    survey: Any = None
    passing: Pass | None = None
    rounds: Any = None
    total: Any = None
    parts: dict[int, Any] = field(default_factory=dict)
    folded: int = 0
    left: int = 0

    def pieces(self) -> list[Piece]:
        """Returns the blocks of its tasks, numbered in their order."""
        blocks = [(task, *block) for task in self.tasks for block in task.blocks()]
        return [Piece(task, number, *block) for number, (task, *block) in enumerate(blocks)]


class Scheduler:
    """A queue of steps that workers take, and jobs that open as it drains.

    Args:
        jobs: what is to be done, in order.
        hands: what performs the steps; told of pieces that need not be performed.
        sink: hears of finished tasks.
        options: how.
        most_parts: parts of a survey that may wait to be folded; as many as there are workers.
        sends: whether steps go to other processes.
    """

    def __init__(
        self, jobs: Iterable[Job], hands: Hands, sink: Sink, options: RunOptions, most_parts: int, sends: bool
    ) -> None:
        self._waiting = deque(jobs)
        self._hands, self._sink, self._options = hands, sink, options
        self._most_parts, self._sends = most_parts, sends
        self._figures: dict[str, Figures] = {}
        self._survival = Survival()
        self._left: dict[str, int] = {}
        self._ready: deque[tuple[Job, Step]] = deque()
        self._taken: dict[int, Job] = {}
        self._failure: BaseException | None = None
        self._changed = threading.Condition()

    def take(self) -> Step | None:
        """Returns the next step, waiting for one if need be; None where all is done, or something failed."""
        with self._changed:
            while self._failure is None:
                if self._ready:
                    job, step = self._ready.popleft()
                    self._taken[id(step)] = job
                    return step
                if self._waiting:
                    self._open(self._waiting.popleft())
                elif self._taken:
                    self._changed.wait()
                else:
                    return None
            return None

    def finish(self, step: Step, done: Done) -> None:
        """Takes what came of a step, and learns from it what is next."""
        job = self._taken[id(step)]
        if step.passing is None:
            for name, samples in done.samples.items():
                for size, sums in samples:
                    self._survival.add(name, size, sums)
            if self._options.progress:
                self._options.progress(done.nbytes)
            task = step.piece.task
            with self._changed:
                self._left[task.name] -= 1
                if self._left[task.name]:
                    return self._let_go(step)
            self._sink.finish(task, self.figures(task))
        else:
            with self._changed:
                if not self._fold(job, step.piece.number, done.moments):
                    return self._let_go(step)
            del done  # its part may be a large matrix, and what follows may take more of them
            self._advance(job, job.total)
        with self._changed:
            self._let_go(step)

    def _let_go(self, step: Step) -> None:
        """Counts a step as done. Called with the lock held."""
        del self._taken[id(step)]
        self._changed.notify_all()

    def fail(self, failure: BaseException) -> None:
        """Stops everything; the first failure counts."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def check(self) -> None:
        """Raises what made it stop, if anything did."""
        if self._failure is not None:
            raise self._failure

    def figures(self, task: Task) -> dict[str, Figures]:
        """Returns what is worth telling of each output of a task that is done."""
        kept = {spec.name: self._survival.figures(spec.name, spec.count) for spec in task.outputs}
        surveyed = self._figures.get(task.name, {})
        return {name: {**(surveyed if n == 0 else {}), **own} for n, (name, own) in enumerate(kept.items())}

    def _open(self, job: Job) -> None:
        """Starts a job: its survey where it has one, else its writing. Called with the lock held."""
        survey = job.tasks[0].kernel.survey
        if self._sends:
            for task in job.tasks:
                check_sendable(task.strategy, task.kernel.write)
        if survey is None:
            self._enqueue(job)
        else:
            job.rounds = survey(sum(task.count for task in job.tasks))
            self._advance(job, None)

    def _advance(self, job: Job, total: Any) -> None:
        """Ends a round. It may think for seconds, so it holds no lock; the job is its caller's alone."""
        job.total, job.folded = None, 0
        try:
            job.passing = job.rounds.send(total)
            if self._sends and job.passing is not None:
                check_sendable(job.tasks[0].strategy, job.passing.function, *job.passing.arguments)
        except StopIteration as finished:
            job.survey, job.passing = finished.value, None
            for task in job.tasks:
                figures = task.kernel.figures(job.survey)
                if figures:
                    self._figures[task.name] = figures
            if job.receive is not None:
                for piece in job.pieces():
                    self._hands.release(piece)
                job.receive(job.survey)
                return
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        pieces = job.pieces() if job.passing is not None else self._unfinished(job)
        job.left = len(pieces)
        if not pieces and job.passing is not None:
            raise MergeError(f"tensor '{job.tasks[0].name}': nothing to survey in an empty tensor")
        steps = [(job, Step(piece, job.passing, job.survey)) for piece in reversed(pieces)]
        job.survey = None  # its steps have it, and let go of it one by one
        with self._changed:
            self._ready.extendleft(steps)
            self._changed.notify_all()

    def _unfinished(self, job: Job) -> list[Piece]:
        """The pieces of a job's tasks that are yet to be written; counts them by task."""
        done = {task.name for task in job.tasks if is_finished(task, self._options.finished)}
        kept = []
        for piece in job.pieces():
            if piece.task.name in done:
                self._hands.release(piece)
            else:
                kept.append(piece)
                self._left[piece.task.name] = self._left.get(piece.task.name, 0) + 1
        return kept

    def _fold(self, job: Job, number: int, part: Any) -> bool:
        """Adds parts in block order, as they become adjacent; returns whether it was the last.

        Parts may be large matrices: a worker whose part comes too early waits with it. The part that all wait
        for is in work, since blocks are taken in order. Called with the lock held.
        """
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

    def _is_crowded(self, job: Job) -> bool:
        if len(job.parts) < self._most_parts:
            return False
        return sum(array.nbytes for part in job.parts.values() for array in part) > SMALL_PARTS


def is_finished(task: Task, finished: frozenset[str]) -> bool:
    """Returns whether all outputs of a task are there already."""
    return all(spec.name in finished for spec in task.outputs)


def jobs_of(tasks: Iterable[Task], finished: frozenset[str]) -> list[Job]:
    """Orders tasks: copies first (cheap, and they may stop the merge), then merges, surveys shared.

    A survey of the whole model needs all of its tensors again while one of them is unfinished. It takes them
    in the order of their names, so that what is decided by position does not depend on how files are laid
    out.
    """
    tasks = list(tasks)
    copies = [Job([task]) for task in tasks if task.strategy is None]
    shared: dict[tuple[Any, ...], Job] = {}
    jobs = []
    for task in tasks:
        if task.strategy is None or task.count == 0:
            continue
        group = task.survey_group
        if group is not None:
            if group not in shared:
                shared[group] = Job([])
                jobs.append(shared[group])
            shared[group].tasks.append(task)
        else:
            jobs.append(Job([task]))
    for job in shared.values():
        job.tasks.sort(key=lambda task: task.name)
    return [job for job in copies + jobs if not all(is_finished(task, finished) for task in job.tasks)]


def jobs_of_fits(fits: Iterable[Fit]) -> list[Job]:
    """Returns a job for each fit: a survey, and nothing written."""
    return [Job([fit.task], fit.receive) for fit in fits]
