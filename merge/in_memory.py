"""A merge of state dicts and modules, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Union

import numpy as np

from merge_models.merge.assembly import Assembly, assign_whole
from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.source import StateDict, why_no_model
from merge_models.merge.errors import PlanError
from merge_models.merge.lazy import LazyModule
from merge_models.merge.plan import Plan, make_plan
from merge_models.merge.run import execute
from merge_models.merge.strategies.base import AbstractStrategy, BaseModel, Figures
from merge_models.merge.strategies.parameters import parameters_of
from merge_models.merge.work import RunOptions

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
        models = [base, *(model for model in models if not _is_same(model, base))]
    resolved = strategy.resolved(len(models))
    if resolved.base_use is BaseModel.UNUSED:
        base = None
    places = [place for place, model in enumerate(models) if base is None or not _is_same(model, base)]
    if not places:
        raise PlanError("there are no models to merge besides the base")
    resolved, models = _for_parents(resolved, places), [models[place] for place in places]
    states = [_state(model) for model in models]
    ties = _ties([*states, *([] if base is None else [_state(base)])])
    parents = [_source(state, ties, f"model {number}") for number, state in enumerate(states)]
    base_source = None if base is None else _source(_state(base), ties, "base")
    sources = [*parents, *([base_source] if base_source is not None else [])]
    base_index = len(parents) if base_source is not None else None
    whole = assign_whole(sources, range(len(parents)), base_index, lambda name, at: resolved)
    assembly = Assembly(tuple(whole[0]), 0 if base_index is None else base_index, tuple(whole[1]))
    plan = make_plan(sources, assembly, dtype)
    sink = _MemorySink(plan)
    execute(plan, sink, options)
    made = {
        name: tensor.to(states[0][name].device) if name in states[0] else tensor
        for name, tensor in sink.tensors.items()
    }
    order = dict.fromkeys([*states[0], *made])
    return {name: made[ties.get(name, name)] for name in order if ties.get(name, name) in made}


def _is_same(model: InMemory, base: InMemory) -> bool:
    """Whether two models are one: the same object, or other ones with the very same tensors."""
    if model is base:
        return True
    states = _state(model), _state(base)
    if not all(isinstance(tensor, torch.Tensor) for state in states for tensor in state.values()):
        return False
    first, second = ({name: _place(tensor) for name, tensor in state.items()} for state in states)
    return bool(first) and first == second and None not in first.values()


def _place(tensor: Tensor) -> tuple[object, ...] | None:
    """Where a tensor's values are, and how they are read there; None where that is not to be known."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    kind = tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), tensor.is_neg()
    return tensor.data_ptr(), *kind


def _for_parents(strategy: AbstractStrategy, places: Sequence[int]) -> AbstractStrategy:
    """The strategy with the values of the models at these places alone."""
    fields = [parameter.field for parameter in parameters_of(type(strategy)).values() if parameter.per_model]
    kept = {field: tuple(getattr(strategy, field)[place] for place in places) for field in fields}
    return replace(strategy, **kept).resolved(len(places))


def _ties(states: Sequence[Mapping[str, Tensor]]) -> dict[str, str]:
    """Names that share a tensor with an earlier name in every model, and that name: they are merged once."""
    shared = [_shared(state) for state in states]
    return {name: first for name, first in shared[0].items() if all(s.get(name) == first for s in shared)}


def _shared(state: Mapping[str, Tensor]) -> dict[str, str]:
    seen: dict[object, str] = {}
    found: dict[str, str] = {}
    for name, tensor in state.items():
        place = _place(tensor) if isinstance(tensor, torch.Tensor) and tensor.numel() else None
        if place is not None and seen.setdefault(place, name) != name:
            found[name] = seen[place]
    return found


def _source(state: Mapping[str, Tensor], ties: Mapping[str, str], label: str) -> StateDict:
    source = StateDict({name: tensor for name, tensor in state.items() if name not in ties}, label)
    unmerged = why_no_model(source.tensors)
    if unmerged:
        raise PlanError(f"{label}: {unmerged}; merge what PEFT's merge_and_unload() gives")
    return source


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
    if isinstance(model, Mapping):
        return model
    if isinstance(model, torch.nn.Module):
        return model.state_dict()
    raise PlanError(f"a model in memory is a state dict or a module, not {printable(repr(model), 80)}")
