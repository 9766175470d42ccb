"""What the loop works with: pieces of tensors, where merged bytes go, and how a plan is carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from merge_models.merge.held import HOLD_BYTES
from merge_models.merge.kernels.blocks import Span
from merge_models.merge.plan import TensorPlan
from merge_models.merge.strategies.base import Block, Figures, Grain


@dataclass(frozen=True)
class Piece:
    """One block of one tensor.

    Attributes:
        tensor: the tensor.
        number: the block's place among those that share its survey.
        start, stop: its elements in the flattened tensor.
    """

    tensor: TensorPlan
    number: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def block(self, spans: list[Span], seed: int, places: np.ndarray | None = None) -> Block:
        """What a strategy sees of it, given its sources; with ``places``, of a sample of it."""
        tensor, spec = self.tensor, self.tensor.spec(seed)
        whole = places is None and tensor.strategy is not None and tensor.strategy.grain is not Grain.ELEMENT
        columns = tensor.count // max(spec.rows, 1) if whole else None
        parents = tuple(spans) if tensor.base is None else tuple(spans[:-1])
        base = None if tensor.base is None else spans[-1]
        return Block(parents, base, self.start, spec, self.number, columns, places)


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
