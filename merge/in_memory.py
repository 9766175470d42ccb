"""A merge of state dicts and modules, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Union

import numpy as np

from merge_models.merge.assembly import Assembly, assign_whole
from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.checkpoint.source import StateDict
from merge_models.merge.lazy import LazyModule
from merge_models.merge.plan import Plan, make_plan
from merge_models.merge.run import RunOptions, execute
from merge_models.merge.strategies.base import AbstractStrategy, BaseModel, Figures

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch")

InMemory = Union[Mapping[str, "Tensor"], "Module"]


def merge_in_memory(
    models: Sequence[InMemory],
    strategy: AbstractStrategy,
    base: InMemory | None,
    dtype: DType | None,
    options: RunOptions,
) -> dict[str, Tensor]:
    if base is not None and strategy.base_is_parent:
        models = [base, *(model for model in models if model is not base)]
    parents = [StateDict(_state(model), f"model {number}") for number, model in enumerate(models)]
    base_source = None if base is None else StateDict(_state(base), "base")
    resolved = strategy.resolved(len(parents))
    if resolved.base_use is BaseModel.UNUSED:
        base_source = None
    sources = [*parents, *([base_source] if base_source is not None else [])]
    base_index = len(parents) if base_source is not None else None
    whole = assign_whole(sources, range(len(parents)), base_index, lambda name, at: resolved)
    assembly = Assembly(tuple(whole[0]), 0 if base_index is None else base_index, tuple(whole[1]))
    plan = make_plan(sources, assembly, dtype)
    sink = _MemorySink(plan)
    execute(plan, sink, options)
    first = _state(models[0])
    return {
        name: tensor.to(first[name].device) if name in first else tensor
        for name, tensor in sink.tensors.items()
    }


class _MemorySink:
    """Blocks are computed where they stay: in the output tensors."""

    def __init__(self, plan: Plan) -> None:
        self.tensors = {
            t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype.torch_name)) for t in plan.tensors
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

    def finish(self, name: str, figures: Figures) -> None:
        del name, figures


def _state(model: InMemory) -> Mapping[str, Tensor]:
    return model if isinstance(model, Mapping) else model.state_dict()
