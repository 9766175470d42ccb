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
from merge_models.merge.held import HOLD_BYTES
from merge_models.merge.plan import Plan, TensorPlan
from merge_models.merge.run import needs_torch
from merge_models.merge.sizes import shown_size
from merge_models.merge.strategies.base import AbstractSpanStrategy

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
    """What a plan needs where memory is no matter."""
    surveyed = sum(tensor.bytes_in for tensor in plan.tensors if tensor.is_surveyed)
    kept = sum(getattr(model, "kept_bytes", 0) for model in plan.models)
    return Need(threads, plan.worker_bytes(), min(HOLD_BYTES, surveyed), kept + _shared_surveys(plan))


def _shared_surveys(plan: Plan) -> int:
    """Bytes of surveys that several tensors share."""
    groups: dict[Any, list[TensorPlan]] = {}
    for tensor in plan.tensors:
        if tensor.survey_group is not None:
            groups.setdefault(tensor.survey_group, []).append(tensor)
    total = 0
    for tensors in groups.values():
        first, together = tensors[0], sum(tensor.count for tensor in tensors)
        if first.strategy is not None:
            total += first.strategy.survey_bytes(replace(first.spec(), together=together))
    return total


def within(plan: Plan, threads: int, limit: int, before: int) -> Need:
    """What fits a limit: as many workers as fit, and then as many held blocks.

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
    """What a run with so many threads, and within a limit where there is one, will take.

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
    # Points that are not near each other need torch after all.
    spans = (t.strategy for t in plan.tensors if isinstance(t.strategy, AbstractSpanStrategy))
    geometry = any(strategy.needs_gram for strategy in spans)
    if not geometry and not needs_torch(plan):
        return
    import torch

    from merge_models.manifolds import frechet, gaussians, rotations, span

    del frechet, gaussians, rotations
    strategies = {t.strategy: len(t.parents) for t in plan.tensors if t.strategy is not None}
    for strategy, count in strategies.items():
        if isinstance(strategy, AbstractSpanStrategy) and strategy.needs_gram:
            one = torch.ones((), dtype=torch.float64)
            points = torch.eye(count, dtype=torch.float64)
            strategy.mixture(span.Gram(one, torch.zeros(count, dtype=torch.float64), points))


def memory_now() -> int:
    """Bytes of memory that this process has, after letting go of what it no longer uses."""
    gc.collect()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
