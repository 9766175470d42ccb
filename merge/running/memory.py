"""What a run needs of memory, and how it is brought within a limit: fewer workers, fewer blocks held.

Blocks themselves are part of the definition of a merge (sums are folded block by block), so one worker with
no block held is the least that a merge can do with. Estimates are upper bounds.
"""

from __future__ import annotations

import gc
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge_models.merge.errors import PlanError
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import Task
from merge_models.merge.running.engines import needs_torch
from merge_models.merge.running.held import HOLD_BYTES
from merge_models.merge.sizes import shown_size

FIXED_BYTES = 32 << 20
"""What allocators round up, threads' stacks, and the run's own lists."""


@dataclass(frozen=True)
class Need:
    """Memory of a run, beyond that of the process before it.

    Attributes:
        threads: workers.
        worker: bytes for each of them.
        held: bytes of blocks that may be held between survey and combining.
        beside: bytes that models keep (factors of adapters), and surveys of the whole model.
    """

    threads: int
    worker: int
    held: int
    beside: int

    @property
    def total(self) -> int:
        """Bytes at most."""
        return self.threads * self.worker + self.held + self.beside + FIXED_BYTES


def needed(plan: Plan, threads: int) -> Need:
    """Returns what a plan needs where memory is no matter."""
    surveyed = sum(task.bytes_in for task in plan.every_task() if task.kernel.survey)
    kept = sum(getattr(model, "kept_bytes", 0) for model in plan.models)
    return Need(threads, plan.worker_bytes(), min(HOLD_BYTES, surveyed), kept + _shared_surveys(plan))


def _shared_surveys(plan: Plan) -> int:
    """Bytes of surveys that several tensors share."""
    groups: dict[Any, list[Task]] = {}
    for task in plan.every_task():
        if task.survey_group is not None:
            groups.setdefault(task.survey_group, []).append(task)
    return sum(tasks[0].kernel.survey_bytes(sum(task.count for task in tasks)) for tasks in groups.values())


def within(plan: Plan, threads: int, limit: int, before: int) -> Need:
    """Returns what fits a limit: as many workers as fit, and then as many held blocks.

    Args:
        plan: what is to be done.
        threads: workers at most.
        limit: bytes that the process may have in all.
        before: bytes that it has now.

    Raises:
        PlanError: one worker does not fit; the message says what would.
    """
    wanted = needed(plan, threads)
    least = Need(1, wanted.worker, 0, wanted.beside)
    room = limit - before
    if least.total > room:
        raise PlanError(
            f"memory: this merge needs {shown_size(before + least.total, 'up')} with one thread"
            f" ({shown_size(before, 'up')} of it for the program itself), {shown_size(limit, 'down')} is"
            " allowed; allow more (--max-memory), or choose another method"
        )
    fitting = min(threads, 1 + (room - least.total) // max(wanted.worker, 1))
    left = room - Need(fitting, wanted.worker, 0, wanted.beside).total
    return Need(fitting, wanted.worker, min(wanted.held, left), wanted.beside)


@dataclass(frozen=True)
class Budget:
    """What a run will take in all, as ``max_memory`` counts it.

    Attributes:
        program: bytes of the process before it: Python, its libraries, and the plan.
        need: what the run takes beyond them.
        least: bytes in all that ``max_memory`` must allow.
    """

    program: int
    need: Need
    least: int

    @property
    def total(self) -> int:
        """Bytes in all, at most."""
        return self.program + self.need.total


def budget(plan: Plan, threads: int, limit: int | None) -> Budget:
    """Returns what a run with so many threads, and within a limit where there is one, will take.

    Loads the libraries that the run will use.

    Raises:
        PlanError: the limit is too small.
    """
    load_libraries(plan)
    program = memory_now()
    need = needed(plan, threads) if limit is None else within(plan, threads, limit, program)
    return Budget(program, need, program + replace(need, threads=1, held=0).total)


def load_libraries(plan: Plan) -> None:
    """Loads what the plan will use, so that it counts as the program's own memory.

    Some of it is loaded by the first call only: geometry is tried out on points of its own.
    """
    # Many tasks are made alike: one of each kind is enough.
    kinds = {(task.strategy, len(task.parents)): task.kernel.warm_up for task in plan.every_task()}
    warm_ups = [warm_up for warm_up in kinds.values() if warm_up is not None]
    if not warm_ups and not needs_torch(plan):
        return
    import torch

    from merge_models.manifolds import frechet, gaussians, rotations, span

    del torch, frechet, gaussians, rotations, span
    for warm_up in warm_ups:
        warm_up()


def memory_now() -> int:
    """Returns bytes of memory that this process has, after letting go of what it no longer uses."""
    gc.collect()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
