"""How a plan is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from merge_models.merge.planning.task import Task
from merge_models.merge.running.held import HOLD_BYTES


@dataclass(frozen=True)
class RunOptions:
    """How a plan is carried out; of all this only ``rounding`` changes the result.

    Attributes:
        threads: workers.
        on_nonfinite: ``error`` stops at a NaN or Inf, ``keep`` lets it through.
        progress: called with the number of output bytes just written, from any worker.
        rounding: ``nearest``, or ``stochastic`` where the output is narrower than float32.
        held_bytes: of inputs that may be held between survey and writing.
        finished: names of tensors that are there already and are not written again.
        watch: called, from any worker, with a task, the number of one of its inputs, and the place and
            bytes of a part of that input as it was read; once for each part of what is written.
    """

    threads: int = 1
    on_nonfinite: str = "error"
    progress: Callable[[int], None] | None = None
    rounding: str = "nearest"
    held_bytes: int = HOLD_BYTES
    finished: frozenset[str] = frozenset()
    watch: Callable[[Task, int, int, np.ndarray], None] | None = None
