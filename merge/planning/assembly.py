"""From a recipe and its checkpoints to assignments: which tensors make each output tensor, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layers import depth, place_of, stacks
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.checkpoint.sources.tied import find_tensor
from merge_models.merge.checkpoint.stacked import Stack
from merge_models.merge.contract.case import Inputs
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.contract.strategy import BaseModel
from merge_models.merge.errors import PlanError, RecipeError
from merge_models.merge.planning.buffers import is_computed
from merge_models.merge.planning.roles import roles_of
from merge_models.merge.recipes.accepted import check_parameters
from merge_models.merge.recipes.hints import gradients_for_models
from merge_models.merge.recipes.recipe import Module, OutputSlice, Recipe
from merge_models.merge.recipes.settings import look_up, matches, patterns
from merge_models.merge.strategies import AbstractStrategy
from merge_models.merge.strategies.registry import find_strategy

Levels = Sequence[Mapping[str, Any]]
Place = tuple[int, str]
"""A model's index, and the name of a tensor in it."""

Dropped = tuple[str, str, str]
"""A tensor that has no part in the output, its model's label, and why."""

_MODULE_WORDS = {
    "text_decoder": ("text_decoder", "language_model", "text_model", "model", "lm_head"),
    "vision_tower": ("vision_tower", "vision_model", "visual", "vision_encoder"),
    "multi_modal_projector": ("multi_modal_projector", "projector", "mm_projector", "connector"),
}

_REST = "default"
"""mergekit's name for the one module of a model without modules, and for what is in no other one."""

_ALONE = "the only model that is listed"


@dataclass(frozen=True)
class Assignment:
    """What makes one output tensor.

    Attributes:
        name: its name in the output.
        inputs: (model index, tensor name in that model) by role.
        strategy: what merges them; None takes the one parent as it is.
        note: why, where that is worth telling.
    """

    name: str
    inputs: Inputs[Place]
    strategy: AbstractStrategy | None
    note: str = ""


@dataclass(frozen=True)
class Assembly:
    """All assignments in writing order.

    Attributes:
        assignments: one per output tensor.
        donor: index of the model that gives config and tokenizer.
        dropped: (tensor, model label, reason) of what has no part in the output.
        stacks: those that have other layers than the donor's.
        remarks: what else a recipe's author may not expect.
    """

    assignments: tuple[Assignment, ...]
    donor: int
    dropped: tuple[Dropped, ...] = ()
    stacks: tuple[Stack, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class StrategyFactory:
    """Makes the strategy of each tensor: parameters looked up by level, filter and depth, then checked.

    Attributes:
        method: the strategy's name.
        entries: levels of parameters of every parent, innermost first.
        shared: levels of the parameters that are one for all.
    """

    method: str
    entries: Sequence[Levels]
    shared: Levels
    _made: dict[tuple[Any, ...], AbstractStrategy] = field(default_factory=dict)

    def make(self, name: str, at: float, theirs: Sequence[str] | None = None) -> AbstractStrategy:
        """Returns the strategy of a tensor by its name and depth.

        Args:
            name: its name in the output; filters of parameters that are one for all models look at it.
            at: its depth in [0, 1].
            theirs: its name in each parent, where filters of parameters of single models look.

        Raises:
            RecipeError: a parameter has a wrong type or range.
        """
        kind = find_strategy(self.method)
        values: dict[str, Any] = {}
        for parameter in parameters_of(kind).values():
            if parameter.per_model:
                places = zip(self.entries, theirs or [name] * len(self.entries), strict=True)
                given = tuple(look_up(levels, parameter, own, at) for levels, own in places)
                values[parameter.field] = given
            else:
                values[parameter.field] = look_up(self.shared, parameter, name, at)
        made = (*((k, repr(v)) for k, v in values.items()),)
        if made not in self._made:
            self._made[made] = kind(**values).resolved(len(self.entries))
        return self._made[made]


def assign_whole(
    models: Sequence[Source],
    parents: Sequence[int],
    base: int | None,
    strategy_for: Callable[[str, float], AbstractStrategy],
    wanted: Callable[[str], bool] = lambda name: True,
) -> tuple[list[Assignment], list[Dropped]]:
    """Assigns whole models tensor by tensor, by name, in the donor's order.

    Args:
        models: every model of the merge.
        parents: indices of those that are merged.
        base: index of the base, or None.
        strategy_for: the strategy of a tensor by name and depth.
        wanted: which tensors belong to this part.

    Returns:
        The assignments, and what is dropped.
    """
    names = _names_of(models, [*([] if base is None else [base]), *parents])
    counts = stacks(names)
    made = _Made()
    for name in filter(wanted, names):
        origin = [(parent, name) for parent in parents]
        at = None if base is None else (base, name)
        made.add(models, name, origin, at, strategy_for(name, depth(place_of(name), counts)))
    return made.assignments, made.dropped


def _names_of(models: Sequence[Source], numbers: Iterable[int]) -> dict[str, None]:
    """The tensors of some models, each once, in their order."""
    return dict.fromkeys(name for number in numbers for name in models[number].tensors)


@dataclass
class _Made:
    """Output tensors so far, and what is left out of them."""

    assignments: list[Assignment] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def add(
        self,
        models: Sequence[Source],
        name: str,
        parents: Sequence[tuple[int, str]],
        base: tuple[int, str] | None,
        strategy: AbstractStrategy | None,
    ) -> None:
        """Takes an output tensor, unless none of its parents has it, or any may lack it; as it is without a
        strategy."""
        used = base if strategy is not None and strategy.base_use.is_origin else None
        places = [*parents, *([] if used is None else [used])]
        infos = [find_tensor(models[model], theirs) for model, theirs in places]
        lacking = [models[place[0]].label for place, info in zip(places, infos, strict=True) if info is None]
        kept = [info for info in infos if info is not None]
        if not any(infos[: len(parents)]):
            only_base = base is not None and find_tensor(models[base[0]], base[1]) is not None
            owner = models[base[0]] if base and only_base else next(m for m in models if name in m.tensors)
            reason = "only the base has it" if only_base else f"{lacking[0]}, which decides here, has none"
            self.dropped.append((name, owner.label, reason))
        elif lacking and is_computed(name, kept):
            reason = "a buffer that not all models keep; computed when loaded"
            self.dropped.append((name, lacking[0], reason))
        elif len({info.dtype.is_float for info in kept}) > 1 and is_computed(name, kept):
            whole = next(n for n, info in enumerate(infos) if info is not None and not info.dtype.is_float)
            note = "a buffer of whole numbers, which other models hold as floating point"
            self.assignments.append(Assignment(name, Inputs((places[whole],)), None, note))
        else:
            note = _ALONE if strategy is None else ""
            self.assignments.append(Assignment(name, Inputs(tuple(parents), used), strategy, note))


def assemble(recipe: Recipe, models: Sequence[Source]) -> Assembly:
    """Carries a recipe over to the models that it names (in the order of ``recipe.model_names()``).

    Raises:
        RecipeError: parameters, slices or modules are wrong.
        PlanError: a model does not have the layers or modules that the recipe takes from it.
    """
    accepted = check_parameters(recipe)
    index = {name: number for number, name in enumerate(recipe.model_names())}
    parts = [_assemble_part(recipe, name, part, models, index) for name, part in recipe.parts()]
    assignments = [a for part in parts for a in part.assignments]
    donor = index[recipe.base_model] if recipe.base_model else parts[0].donor
    told = [*accepted, *_remarks(recipe, assignments)]
    if recipe.only is not None:
        _check_only(recipe.only, assignments)
        assignments = [_only(recipe, a, donor, models) for a in assignments]
    if recipe.modules is not None:
        _check_covered(models[donor], assignments, recipe.modules)
    dropped = tuple(d for part in parts for d in part.dropped)
    changed = tuple(stack for part in parts for stack in part.stacks)
    return Assembly(tuple(assignments), donor, dropped, changed, tuple(told))


def _assemble_part(
    recipe: Recipe,
    name: str | None,
    part: Module,
    models: Sequence[Source],
    index: Mapping[str, int],
) -> Assembly:
    levels = [part.parameters, recipe.parameters]
    belongs = _module_filter(name, recipe.modules or {})
    if part.slices:
        return _assemble_slices(recipe, part.slices, levels, belongs, models, index)
    strategy, base_name = find_strategy(recipe.merge_method), recipe.base_model
    given = [(entry.model, entry.parameters) for entry in part.models or ()]
    if base_name is not None and strategy.base_model is BaseModel.PARENT:
        given += [] if base_name in [name for name, _ in given] else [(base_name, {})]
    parameters = {**recipe.parameters, **part.parameters}
    roles = roles_of(strategy, parameters, [name for name, _ in given], base_name)
    if roles.is_base_alone:
        return _assemble_base(models, index[given[0][0]], belongs)
    if not roles.parents:
        raise RecipeError(f"{strategy.name}: models names no model to merge besides the base; add one")
    kept = [given[place] for place in roles.parents]
    parents = [index[model] for model, _ in kept]
    # A base that nothing is measured against still gives the order of tensors.
    is_parent = strategy.base_model is BaseModel.PARENT
    base = index[base_name] if base_name is not None and not is_parent else None
    factory = StrategyFactory(recipe.merge_method, [[own, *levels] for _, own in kept], levels)
    assignments, dropped = assign_whole(models, parents, base, factory.make, belongs)
    donor = base if base is not None else parents[0]
    return Assembly(tuple(assignments), donor, tuple(dropped))


def _assemble_base(models: Sequence[Source], base: int, belongs: Callable[[str], bool]) -> Assembly:
    """The base as it is: the sum of no task vectors."""
    names = filter(belongs, models[base].tensors)
    taken = tuple(Assignment(name, Inputs(((base, name),)), None, _ALONE) for name in names)
    return Assembly(taken, base)


def _assemble_slices(
    recipe: Recipe,
    slices: Sequence[OutputSlice],
    levels: Levels,
    belongs: Callable[[str], bool],
    models: Sequence[Source],
    index: Mapping[str, int],
) -> Assembly:
    """Concatenates runs of layers. What stands before them comes from the first slice, what comes after from
    the last: whatever any model of the slices has there."""
    pieces = [_Piece(recipe, piece, levels, models, index) for piece in slices]
    donor = pieces[0].numbers[0]
    prefix = _stack_of(models[index[slices[0].sources[0].model]], belongs)
    names = _names_of(models, [number for piece in pieces for number in piece.everyone()])
    outside = [name for name in names if belongs(name) and place_of(name).prefix != prefix]
    made = _Made()
    for name in outside:
        if place_of(name).is_first:
            pieces[0].outside(made, name, 0.0)
    origins: list[tuple[int, int]] = []
    for piece in pieces:
        for offset in range(piece.length):
            piece.layer(made, prefix, offset, len(origins))
            origins.append((piece.numbers[0], piece.starts[0] + offset))
    for name in outside:
        if not place_of(name).is_first:
            pieces[-1].outside(made, name, 1.0)
    return Assembly(tuple(made.assignments), donor, tuple(made.dropped), (Stack(prefix, tuple(origins)),))


class _Piece:
    """One output slice with its models and strategies."""

    def __init__(
        self,
        recipe: Recipe,
        piece: OutputSlice,
        levels: Levels,
        models: Sequence[Source],
        index: Mapping[str, int],
    ) -> None:
        if not piece.sources:
            raise RecipeError("slices: every slice needs sources")
        self.models = models
        names = [source.model for source in piece.sources]
        base = piece.base_model or recipe.base_model
        strategy = find_strategy(recipe.merge_method)
        outer = [piece.parameters, *levels]
        merged = {key: value for level in reversed(outer) for key, value in level.items()}
        roles = roles_of(strategy, merged, names, base)
        self.alone = roles.is_base_alone
        kept = [piece.sources[place] for place in roles.parents]
        if not kept:
            raise RecipeError(f"slices: a slice names no model besides the base; {strategy.name} needs one")
        self.numbers = [index[source.model] for source in kept]
        self.starts = [source.layer_range[0] for source in kept]
        lengths = {source.layer_range[1] - source.layer_range[0] for source in piece.sources}
        empty = next((s for s in piece.sources if s.layer_range[1] <= s.layer_range[0]), None)
        if empty is not None:
            raise RecipeError(
                f"slices: layer_range {list(empty.layer_range)} of {empty.model} has no layers; it is [first,"
                " last + 1]"
            )
        self.length = lengths.pop()
        if lengths:
            ranges = ", ".join(str(list(source.layer_range)) for source in piece.sources)
            raise RecipeError(f"slices: layer ranges of one slice must be equally long, not {ranges}")
        self.base = None
        if base is not None and roles.measures_from_base:
            ranges = [source.layer_range for source in piece.sources if source.model == base]
            self.base = (index[base], ranges[0][0] if ranges else self.starts[0])
        self.factory = StrategyFactory(recipe.merge_method, [[s.parameters, *outer] for s in kept], outer)

    def everyone(self) -> list[int]:
        """Its models, the base last."""
        return [*self.numbers, *([] if self.base is None else [self.base[0]])]

    def layer(self, made: _Made, prefix: str, offset: int, number: int) -> None:
        """Makes output layer ``number`` of its own layer ``offset``; gradients run through this slice."""
        rests: dict[str, None] = {}
        starts = [f"{prefix}{start + offset}." for start in self.starts]
        base = None if self.base is None else (self.base[0], f"{prefix}{self.base[1] + offset}.")
        for model, start in zip(self.numbers, starts, strict=True):
            rests.update(self._rests(model, prefix, start))
        if base is not None:
            rests.update(self._rests(base[0], prefix, base[1]))
        at = offset / (self.length - 1) if self.length > 1 else 1.0
        for rest in rests:
            name = f"{prefix}{number}.{rest}"
            parents = [(model, start + rest) for model, start in zip(self.numbers, starts, strict=True)]
            theirs = None if base is None else (base[0], base[1] + rest)
            self._add(made, name, at, parents, theirs)

    def _rests(self, model: int, prefix: str, start: str) -> dict[str, None]:
        inside = {n[len(start) :]: None for n in self.models[model].tensors if n.startswith(start)}
        if not inside:
            count = stacks(self.models[model].tensors).get(prefix, 0)
            layer = start.removeprefix(prefix).rstrip(".")
            raise PlanError(
                f"{self.models[model].label}: has no layer {layer} in '{prefix}' (it has {count});"
                " mend layer_range"
            )
        return inside

    def outside(self, made: _Made, name: str, at: float) -> None:
        """Makes a tensor that is in no layer."""
        base = (self.base[0], name) if self.base else None
        parents = [(model, name) for model in self.numbers]
        self._add(made, name, at, parents, base)

    def _add(
        self,
        made: _Made,
        name: str,
        at: float,
        parents: Sequence[tuple[int, str]],
        base: tuple[int, str] | None,
    ) -> None:
        """Makes a tensor of its models', or takes it from the base that stands alone."""
        strategy = None if self.alone else self.factory.make(name, at, [own for _, own in parents])
        made.add(self.models, name, parents[:1] if self.alone else parents, base, strategy)


def _stack_of(model: Source, belongs: Callable[[str], bool]) -> str:
    counts = stacks(name for name in model.tensors if belongs(name))
    if not counts:
        raise PlanError(f"{model.label}: has no numbered layers to slice")
    longest = sorted(counts, key=lambda prefix: -counts[prefix])
    if len(longest) > 1:
        shown = ", ".join(printable(prefix) for prefix in longest[:4])
        raise RecipeError(f"slices: {model.label} has several stacks of layers ({shown}); use modules:")
    return longest[0]


def _module_filter(name: str | None, modules: Mapping[str, Module]) -> Callable[[str], bool]:
    """Which tensors a module has: those with its word among the first parts of their names.

    A name with dots is the beginning of its tensors' names.
    ``default`` is all that belongs to no other: the whole of a model that has no modules.
    """
    named = [module for module in modules if module != _REST]
    if name is None:
        return lambda tensor: True

    def words(module: str) -> tuple[str, ...]:
        return _MODULE_WORDS.get(module, (module,))

    def score(module: str, tensor: str) -> int:
        if "." in module:
            return 2 + module.count(".") if tensor.startswith(f"{module}.") else 0
        parts = tensor.split(".")[:3]
        hits = [number for number, part in enumerate(parts) if part in words(module)]
        weak = module == "text_decoder" and hits and parts[hits[-1]] in ("model", "lm_head")
        return 0 if not hits else 1 if weak else 2

    def belongs(tensor: str) -> bool:
        best = max(named, key=lambda module: score(module, tensor), default=_REST)
        return name == (_REST if best == _REST or score(best, tensor) == 0 else best)

    return belongs


def _check_covered(donor: Source, assignments: Iterable[Assignment], modules: Mapping[str, Module]) -> None:
    made = {assignment.name for assignment in assignments}
    stacked = {place_of(name).prefix for name in made}
    for name in donor.tensors:
        if name not in made and place_of(name).prefix not in stacked - {""}:
            raise RecipeError(
                f"modules: tensor '{printable(name)}' belongs to none of {', '.join(modules)};"
                " add a module named by the first part of its name"
            )


def _check_only(only: Sequence[str], assignments: Sequence[Assignment]) -> None:
    for pattern in only:
        if not any(matches(pattern, assignment.name) for assignment in assignments):
            names = ", ".join(printable(assignment.name) for assignment in assignments[:2])
            raise RecipeError(
                f"only: '{printable(pattern)}' matches no tensor; mend or remove it (names are like {names})"
            )


def _only(recipe: Recipe, assignment: Assignment, donor: int, models: Sequence[Source]) -> Assignment:
    if any(matches(pattern, assignment.name) for pattern in recipe.only or ()):
        return assignment
    if assignment.name not in models[donor].tensors:
        raise PlanError(
            f"{models[donor].label}: has no tensor '{printable(assignment.name)}' to take (only:)"
        )
    return Assignment(assignment.name, Inputs(((donor, assignment.name),)), None, "which only: leaves out")


def _remarks(recipe: Recipe, assignments: Sequence[Assignment]) -> list[str]:
    """What a recipe says without any effect, or with another one than its author may expect."""
    levels, told = recipe.levels(), list[str]()
    pieces = [piece for _, part in recipe.parts() for piece in part.slices or ()]
    if any(piece.residual_weight is not None for piece in pieces):
        told.append("ignored: residual_weight changes nothing, as in mergekit")
    filters = [
        (key, pattern) for level in levels for key, value in level.items() for pattern in patterns(value)
    ]
    names = dict.fromkeys(
        name for a in assignments for name in (a.name, *(own for _, own in a.inputs.parents))
    )
    for key, pattern in dict.fromkeys((key, str(pattern)) for key, pattern in filters if pattern is not None):
        if not any(matches(pattern, name) for name in names):
            told.append(
                f"the filter '{printable(pattern)}' of parameter '{printable(key)}' matches no tensor"
            )
    return [*told, *gradients_for_models(recipe)]
