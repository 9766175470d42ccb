"""What the loop works with: pieces of tasks, and where merged bytes go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Inputs
from merge_models.merge.contract.kernel import Figures, Grain
from merge_models.merge.contract.span import Span
from merge_models.merge.planning.task import Task


@dataclass(frozen=True)
class Piece:
    """One block of one task.

    Attributes:
        task: the task.
        number: the block's place among those that share its survey.
        start, stop: its elements in the task's flattened domain.
    """

    task: Task
    number: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    @property
    def place(self) -> tuple[str, int]:
        """What tells it from all other pieces."""
        return self.task.name, self.start

    def block(self, spans: Inputs[Span]) -> Block:
        """Returns what a kernel sees of it, given its inputs."""
        case, columns = self.task.case, None
        if self.task.kernel.grain is not Grain.ELEMENT:
            columns = (case.result if case.inputs.parents else self.task.domain).columns
        return Block(spans, self.start, case, self.number, columns)

    def sample(self, spans: Inputs[Span], places: np.ndarray) -> Block:
        """Returns the same of a sample of it: runs that begin at some places."""
        return Block(spans, self.start, self.task.case, self.number, None, places)


class Sink(Protocol):
    """Where merged bytes go."""

    def buffer(self, name: str, start: int, stop: int, scratch: np.ndarray) -> np.ndarray:
        """Returns memory for bytes ``start`` to ``stop`` of a tensor: the place itself, or ``scratch``."""
        ...

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Takes bytes that were put into ``buffer``."""
        ...

    def finish(self, task: Task, figures: dict[str, Figures]) -> None:
        """Hears that all outputs of a task have been written, and what is to be told of each."""
        ...
