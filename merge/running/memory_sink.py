"""The sink of a merge in memory: blocks are made where they stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from merge_models.merge.contract.kernel import Figures
from merge_models.merge.lazy import LazyModule
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import Task

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


class MemorySink:
    """Takes blocks into the output tensors.

    Attributes:
        tensors: the output, by name.
    """

    def __init__(self, plan: Plan) -> None:
        self.tensors = {
            t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype.torch_name)) for t in plan.outputs()
        }
        self._bytes = {
            name: tensor.reshape(-1).view(torch.uint8).numpy()
            for name, tensor in self.tensors.items()
            if tensor.numel()
        }

    def buffer(self, name: str, start: int, stop: int, scratch: np.ndarray) -> np.ndarray:
        del scratch
        return self._bytes[name][start:stop]

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        del name, start, data

    def finish(self, task: Task, figures: dict[str, Figures]) -> None:
        del task, figures
