"""A merge of state dicts and modules, in memory: the same recipes, by the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Union

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.sources.opening import why_no_model
from merge_models.merge.checkpoint.sources.source import StateDict
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.errors import PlanError, RecipeError, did_you_mean
from merge_models.merge.lazy import LazyModule
from merge_models.merge.planning.assembly import assemble
from merge_models.merge.planning.plan import make_plan
from merge_models.merge.recipes.recipe import Recipe
from merge_models.merge.running.engines import execute
from merge_models.merge.running.memory_sink import MemorySink
from merge_models.merge.running.options import RunOptions
from merge_models.merge.strategies.registry import find_strategy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
else:
    torch = LazyModule("torch")

InMemory = Union[Mapping[str, "Tensor"], "Module"]


@dataclass(frozen=True)
class NamedModels:
    """Models in memory under names that a recipe may use.

    Attributes:
        models: every model, once.
        parents: the names of those that were listed; the base's, where it was among them.
        base: the base's name, or None.
    """

    models: Mapping[str, InMemory]
    parents: tuple[str, ...]
    base: str | None


def named_models(
    strategy: AbstractStrategy, models: Sequence[InMemory], base: InMemory | None
) -> NamedModels:
    """Names models that are told apart by what they hold: ``model 0``, ``model 1``, … and ``base``.

    A base that the strategy does not look at has no name.
    """
    use = strategy.resolved(len(models)).base_use
    if use is BaseModel.UNUSED:
        base = None
    names = tuple(
        "base" if base is not None and _is_same(model, base) else f"model {number}"
        for number, model in enumerate(models)
    )
    named = dict(zip(names, models, strict=True))
    return NamedModels(
        named if base is None else {**named, "base": base}, names, None if base is None else "base"
    )


def merge_in_memory(recipe: Recipe, models: Mapping[str, InMemory], options: RunOptions) -> dict[str, Tensor]:
    """Carries out a recipe on models in memory.

    Args:
        recipe: the recipe.
        models: modules or state dicts, by the names that it has for them.
        options: how; the recipe's rounding counts.

    Raises:
        MergeError: the recipe names others, asks for what only folders have, or does not fit the models.
    """
    _check_fits_memory(recipe, models)
    states = {name: _state(models[name]) for name in recipe.model_names()}
    ties = _ties(list(states.values()))
    sources = [_source(state, ties, name) for name, state in states.items()]
    plan = make_plan(sources, assemble(recipe, sources), recipe.output_dtype(), recipe.seed)
    sink = MemorySink(plan)
    execute(plan, sink, replace(options, rounding=recipe.rounding))
    lead = states[_lead(recipe)]
    made = {
        name: tensor.to(lead[name].device) if name in lead else tensor
        for name, tensor in sink.tensors.items()
    }
    order = dict.fromkeys([*lead, *made])
    return {name: made[ties.get(name, name)] for name in order if ties.get(name, name) in made}


def _check_fits_memory(recipe: Recipe, models: Mapping[str, InMemory]) -> None:
    if recipe.tokenizer_settings() is not None or recipe.chat_template is not None:
        raise RecipeError("models in memory have no tokenizer: merge folders, or remove it from the recipe")
    for name in recipe.model_names():
        if name not in models:
            raise RecipeError(
                f"the recipe's model '{printable(name)}' is not in models={did_you_mean(name, models)}"
            )


def _lead(recipe: Recipe) -> str:
    """The model that gives devices and order: the first that is merged, as the recipe lists them."""
    names = recipe.model_names()
    kind = find_strategy(recipe.merge_method)
    if recipe.base_model is None or kind.base_model is BaseModel.PARENT:
        return names[0]
    return next((name for name in names if name != recipe.base_model), names[0])


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


def _state(model: InMemory) -> Mapping[str, Tensor]:
    if isinstance(model, Mapping):
        return model
    if isinstance(model, torch.nn.Module):
        return model.state_dict()
    raise PlanError(f"a model in memory is a state dict or a module, not {printable(repr(model), 80)}")
