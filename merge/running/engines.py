"""Who performs steps. An engine decides nothing about the result."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from merge_models.merge.checkpoint.threads import one_torch_thread
from merge_models.merge.contract.kernel import Figures
from merge_models.merge.kernels.blocks import native_name
from merge_models.merge.lazy import LazyModule
from merge_models.merge.planning.plan import Plan
from merge_models.merge.running.hands import Hands
from merge_models.merge.running.options import RunOptions
from merge_models.merge.running.pieces import Sink
from merge_models.merge.running.reading import Buffers
from merge_models.merge.running.scheduler import Scheduler, jobs_of, jobs_of_fits

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

GRACE_SECONDS = 0.5
"""How long a merge that is stopped waits for blocks in work; a large matrix may take much longer."""


class Engine(Protocol):
    """Takes steps from a scheduler until there are none, has them performed, and returns what came of them.

    One that has steps performed elsewhere keeps hands there and sends ``Step`` and ``Done``.
    """

    @property
    def workers(self) -> int:
        """How many steps are performed at a time."""
        ...

    @property
    def sends(self) -> bool:
        """Whether steps go to other processes, so that kernels must be importable there."""
        ...

    def run(self, scheduler: Scheduler, hands: Hands, uses_torch: bool) -> None:
        """Performs every step; failures are told to the scheduler."""
        ...


@dataclass(frozen=True)
class Threads:
    """Threads of this process.

    Attributes:
        workers: how many.
    """

    workers: int = 1
    sends: bool = False

    def run(self, scheduler: Scheduler, hands: Hands, uses_torch: bool) -> None:
        """Performs every step, a thread at a time for each worker."""
        arguments = (scheduler, hands, uses_torch)
        threads = [threading.Thread(target=_work, args=arguments, daemon=True) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.2)
        except BaseException as interruption:
            scheduler.fail(interruption)
            deadline = time.monotonic() + GRACE_SECONDS
            for thread in threads:
                thread.join(timeout=max(deadline - time.monotonic(), 0.0))


def _work(scheduler: Scheduler, hands: Hands, uses_torch: bool) -> None:
    buffers = Buffers()
    try:
        if uses_torch:
            torch.set_num_threads(1)  # the limit of the math library below torch is one of each thread
        while (step := scheduler.take()) is not None:
            scheduler.finish(step, hands.perform(step, buffers))
    except BaseException as failure:
        scheduler.fail(failure)


def execute(plan: Plan, sink: Sink, options: RunOptions, engine: Engine | None = None) -> dict[str, Figures]:
    """Carries out a plan: its fits, then its tasks.

    Args:
        plan: what is done.
        sink: where merged bytes go.
        options: how.
        engine: what performs the steps; threads of this process unless given.

    Returns:
        What is worth telling, by output tensor.

    Raises:
        MergeError: an input cannot be read or holds NaN or Inf, or the output cannot be written.
    """
    engine = engine or Threads(max(1, options.threads))
    hands, torch_too = Hands(plan, sink, options), needs_torch(plan)
    figures: dict[str, Figures] = {}
    with one_torch_thread() if torch_too else nullcontext():
        for jobs in (jobs_of_fits(plan.fits), jobs_of(plan.tasks, options.finished)):
            scheduler = Scheduler(jobs, hands, sink, options, engine.workers, engine.sends)
            engine.run(scheduler, hands, torch_too)
            scheduler.check()
            for task in plan.tasks:
                figures |= {name: told for name, told in scheduler.figures(task).items() if told}
    return figures


def needs_torch(plan: Plan) -> bool:
    """Returns whether torch computes anything of size: not where the compiled kernels do."""
    merged = [task for task in plan.every_task() if task.strategy is not None]
    return native_name() == "torch" or any(task.kernel.uses_torch for task in merged)
