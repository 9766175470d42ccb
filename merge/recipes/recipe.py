"""Recipes: mergekit's YAML dialect, checked strictly, or the same made in Python."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from merge_models.merge.checkpoint.dtypes import DType, parse_dtype
from merge_models.merge.checkpoint.guard import read_bounded
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.contract.strategy import class_text
from merge_models.merge.errors import RecipeError, did_you_mean
from merge_models.merge.recipes.strict_yaml import MAX_LETTERS, documents
from merge_models.merge.strategies import AbstractStrategy
from merge_models.merge.strategies.registry import find_strategy, strategy_name
from merge_models.merge.tokenizer.settings import TokenizerSettings, parts_of

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")


class _Checked(type(BaseModel)):
    """What a caller builds wrongly is told as all errors are; pydantic's own objects do not come this way."""

    def __call__(cls, *given: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*given, **fields)
        except ValidationError as error:
            raise RecipeError(_first_problem(error)) from None


class _Strict(BaseModel, metaclass=_Checked):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Place(_Strict):
    """A folder or Hub id, and the revision on the Hub."""

    path: str
    revision: str | None = None

    def text(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


class _Reference(_Strict):
    """A model as a map, with an adapter perhaps."""

    model: _Place | str
    lora: _Place | str | None = None
    override_architecture: None = None

    def text(self) -> str:
        parts = [part for part in (self.model, self.lora) if part is not None]
        return "+".join(part if isinstance(part, str) else part.text() for part in parts)


def _reference(value: Any) -> Any:
    if isinstance(value, dict) and value.get("override_architecture") is not None:
        raise ValueError(
            "has override_architecture, which is not needed here: tensors are matched by their names,"
            " whatever the architecture is called; remove it"
        )
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _Reference.model_validate(value).text() if isinstance(value, dict) else value


Reference = Annotated[str, BeforeValidator(_reference)]
"""``PATH[@REVISION][+ADAPTER[@REVISION]]``, or the same as a map ``{model: {path, revision}, lora: …}``."""


class ModelEntry(_Strict):
    """One parent: its path or Hub id, and its own parameters."""

    model: Reference
    parameters: dict[str, Any] = Field(default_factory=dict)


class SliceSource(_Strict):
    """A run of layers of one model: ``layer_range`` is [first, last + 1]."""

    model: Reference
    layer_range: tuple[int, int]
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputSlice(_Strict):
    """Layers of the output, merged from equally long runs of layers."""

    sources: tuple[SliceSource, ...]
    base_model: Reference | None = None
    residual_weight: float | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Module(_Strict):
    """A part of a model with several (text, vision, projector), or all of it: its own models or slices."""

    models: tuple[ModelEntry, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Recipe(_Strict):
    """What to merge and how. Field names are mergekit's; exactly one of models, slices, modules is given.

    Attributes:
        merge_method: a strategy's name.
        models: the parents, whole.
        slices: the output's layers, by runs of the parents' layers.
        modules: parts of the model by name, each with models or slices; ``default`` is what is in no other.
        base_model: the base; it also donates config, tokenizer and tensor order (else the first model).
        parameters: parameters of the strategy for all models.
        only: patterns of the tensors to merge; the others are taken from the base or first model.
        dtype: dtype of the output; arithmetic is float32 or wider whatever it says.
        out_dtype: the same; wins over ``dtype``.
        rounding: ``nearest`` (even), or ``stochastic``: up or down by keyed draws, right in the mean; for
            outputs narrower than float32.
        seed: key of all randomness.
        tokenizer_source: ``union``, ``base`` or a model: short for ``tokenizer: {source: …}``.
        tokenizer: the output's tokenizer, and the rows of its tokens.
        chat_template: ``auto``, the name of a built-in one, or Jinja text.
        name: what later recipes of the same file call the result.

    >>> recipe = Recipe(merge_method="ties", base_model="base", models=[{"model": "a"}, {"model": "b"}])
    >>> recipe.model_names()
    ['base', 'a', 'b']
    """

    merge_method: str
    models: tuple[ModelEntry, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: dict[str, Module] | None = None
    base_model: Reference | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    only: tuple[str, ...] | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: int = Field(default=0, ge=-(1 << 63), lt=1 << 63)
    tokenizer_source: Reference | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Recipe:
        """What is wrong between fields."""
        given = [key for key in ("models", "slices", "modules") if getattr(self, key)]
        if len(given) != 1:
            raise RecipeError(f"give exactly one of models, slices, modules, not {given or 'none'}")
        for name, part in (self.modules or {}).items():
            if bool(part.models) == bool(part.slices):
                raise RecipeError(f"modules: {printable(name)}: give either models or slices")
        if self.only is not None and not self.only:
            raise RecipeError("only: is empty, so nothing would be merged; name tensors or remove it")
        if "" in (self.base_model, self.tokenizer_source, *self.model_names()):
            raise RecipeError("a model's name is empty; give a folder, a .safetensors file or a Hub id")
        find_strategy(self.merge_method)
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise RecipeError("give tokenizer or tokenizer_source, not both")
        return self

    def parts(self) -> list[tuple[str | None, Module]]:
        """Returns (module name or None, its models or slices and parameters)."""
        if self.modules is not None:
            return list(self.modules.items())
        return [(None, Module(models=self.models, slices=self.slices))]

    def levels(self) -> list[dict[str, Any]]:
        """Returns the parameters of every level: the recipe's, and its modules', slices' and models'."""
        return [*self.shared_levels(), *self.own_levels()]

    def shared_levels(self) -> list[dict[str, Any]]:
        """Returns the parameters of the recipe, and of its modules and slices."""
        parts = [part for _, part in self.parts()]
        pieces = [piece.parameters for part in parts for piece in part.slices or ()]
        return [self.parameters, *(part.parameters for part in parts), *pieces]

    def own_levels(self) -> list[dict[str, Any]]:
        """Returns the parameters of single models."""
        levels: list[dict[str, Any]] = []
        for _, part in self.parts():
            levels += [entry.parameters for entry in part.models or ()]
            for piece in part.slices or ():
                levels += [source.parameters for source in piece.sources]
        return levels

    def model_names(self) -> list[str]:
        """Returns every model named, the base first, each once."""
        names = [self.base_model] if self.base_model is not None else []
        for _, part in self.parts():
            names += [entry.model for entry in part.models or ()]
            for piece in part.slices or ():
                names += [piece.base_model] if piece.base_model is not None else []
                names += [source.model for source in piece.sources]
        return list(dict.fromkeys(names))

    def tokenizer_settings(self) -> TokenizerSettings | None:
        """Returns what is asked for the tokenizer; None where the donor's is kept."""
        if self.tokenizer is not None or self.tokenizer_source is None:
            return self.tokenizer
        return TokenizerSettings(source=self.tokenizer_source)

    def aide_names(self) -> list[str]:
        """Returns models that give tokens only."""
        settings, merged = self.tokenizer_settings(), self.model_names()
        return [name for name in settings.model_names() if name not in merged] if settings else []

    def output_dtype(self) -> DType | None:
        """Returns the dtype to write, or None to keep that of the sources."""
        name = self.out_dtype or self.dtype
        return parse_dtype(name) if name else None

    def document(self) -> dict[str, Any]:
        """Returns the recipe as plain values, without what is unset."""
        return self.model_dump(exclude_defaults=True, mode="json")

    def yaml(self) -> str:
        """Returns the recipe as YAML."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True)


def recipe_of(
    strategy: AbstractStrategy,
    models: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    only: Sequence[str] | None = None,
) -> Recipe:
    """Returns the recipe that merges ``models`` with a strategy object."""
    names = [os.fspath(model) for model in models]
    check_more_than_base(type(strategy), names, base)
    resolved = strategy.resolved(len(names))
    _check_fields(strategy)
    shared: dict[str, Any] = {}
    own: list[dict[str, Any]] = [{} for _ in names]
    for parameter in parameters_of(type(strategy)).values():
        value = getattr(resolved, parameter.field)
        if parameter.per_model:
            for entry, item in zip(own, value, strict=True):
                entry[parameter.name] = item
        elif value != parameter.default:
            shared[parameter.name] = value
    return Recipe(
        merge_method=strategy_name(type(strategy)),
        models=tuple(ModelEntry(model=n, parameters=p) for n, p in zip(names, own, strict=True)),
        base_model=None if base is None else os.fspath(base),
        parameters=shared,
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        rounding=check_rounding(rounding),
        seed=check_seed(seed),
        only=None if only is None else tuple(only),
    )


def _check_fields(strategy: AbstractStrategy) -> None:
    """Refuses values that no recipe can hold."""
    for field in dataclasses.fields(strategy):
        if not field.metadata and getattr(strategy, field.name) != field.default:
            raise RecipeError(
                f"{class_text(type(strategy))}: the field '{field.name}' is no parameter, so no recipe can"
                " hold it; make it by parameter(...)"
            )


def check_more_than_base(
    strategy: type[AbstractStrategy], models: Sequence[str], base: str | os.PathLike[str] | None
) -> None:
    """Refuses the base alone, which only recipes that were written so may merge with itself.

    Raises:
        RecipeError: the strategy takes differences from the base, and there are no other models.
    """
    if base is None or not strategy.base_model.is_required:
        return
    if models and {*models} == {os.fspath(base)}:
        raise RecipeError(f"{strategy.name}: there is no model to merge besides the base; name one")


def check_seed(value: Any) -> int:
    """Returns a seed of one of Python's or numpy's kinds of whole numbers.

    Raises:
        RecipeError: it is none, or does not fit 64 bits.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or not -(1 << 63) <= value < 1 << 63:
        raise RecipeError(f"seed is a whole number from -2^63 to 2^63 - 1, not {printable(repr(value), 80)}")
    return int(value)


def check_rounding(value: Any) -> Literal["nearest", "stochastic"]:
    """Returns a kind of rounding.

    Raises:
        RecipeError: there is none of that name.
    """
    if not isinstance(value, str) or value not in ("nearest", "stochastic"):
        raise RecipeError(f"rounding is 'nearest' or 'stochastic', not {printable(repr(value))}")
    return value


def load_recipes(file: str | os.PathLike[str]) -> tuple[Recipe, ...]:
    """Reads a recipe file: one recipe, or several between lines of ``---``, of which later ones name earlier.

    Raises:
        RecipeError: it is missing, no YAML, or no valid recipe; the message names the key.

    >>> from pathlib import Path
    >>> one = "merge_method: linear\\nmodels: [{model: runs/a}]\\n"
    >>> _ = Path("recipe.yml").write_text(f"name: half\\n{one}---\\n{one}")
    >>> [recipe.name for recipe in load_recipes("recipe.yml")]
    ['half', None]
    """
    path = Path(file)
    data = read_bounded(local_path(path), MAX_LETTERS, "not a recipe", RecipeError)
    try:
        values = [value for value in documents(data.decode("utf-8")) if value is not None]
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not valid YAML: not UTF-8") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if len(values) < 2:
        return (parse_recipe(next(iter(values), None), str(path)),)
    recipes = [parse_recipe(value, f"{path}: recipe {n}") for n, value in enumerate(values, 1)]
    _check_names(recipes, f"{path}: ")
    return tuple(recipes)


def load_recipe(file: str | os.PathLike[str]) -> Recipe:
    """Reads a file with one recipe; see :func:`load_recipes`.

    >>> from pathlib import Path
    >>> _ = Path("recipe.yml").write_text("merge_method: linear\\nmodels: [{model: runs/a}]\\n")
    >>> load_recipe("recipe.yml").merge_method
    'linear'
    """
    recipes = list(load_recipes(file))
    if len(recipes) > 1:
        raise RecipeError(f"{Path(file)}: holds {len(recipes)} recipes; use run_recipes (merge-models run)")
    return recipes[0]


def as_recipe(value: Any) -> Recipe:
    """Returns a recipe as callers give it: itself, what its YAML holds as plain values, or the path of its
    file.

    Raises:
        RecipeError: it is none of them, or wrong.
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, Mapping):
        return parse_recipe(dict(value), where="")
    if isinstance(value, (str, os.PathLike)):
        return load_recipe(value)
    several = "; run_recipes carries out several" if isinstance(value, Iterable) else ""
    raise RecipeError(f"a recipe is a Recipe, a dict or a path, not {printable(repr(value), 80)}{several}")


def as_recipes(value: Any) -> tuple[Recipe, ...]:
    """Returns the same of several: the path of their file, or one after the other."""
    if isinstance(value, (str, os.PathLike)):
        return load_recipes(value)
    if isinstance(value, (Recipe, Mapping)) or not isinstance(value, Iterable):
        return (as_recipe(value),)
    recipes = tuple(map(as_recipe, value))
    if not recipes:
        raise RecipeError("there are no recipes")
    _check_names(recipes, "")
    return recipes


def _check_names(recipes: Sequence[Recipe], prefix: str) -> None:
    seen: set[str] = set()
    for number, recipe in enumerate(recipes, 1):
        where = f"{prefix}recipe {number}"
        name = recipe.name
        if name is None and number < len(recipes):
            raise RecipeError(f"{where}: has no 'name'; of several recipes only the last may go without")
        if name is not None and (not _NAME.fullmatch(name) or name in seen):
            why = "stands twice" if name in seen else "may have letters, digits, '.', '_' and '-' only"
            raise RecipeError(f"{where}: the name '{printable(name)}' {why}; choose another")
        seen.add(name or "")


def parse_recipe(value: Any, where: str = "recipe") -> Recipe:
    """Returns a recipe from plain values.

    Args:
        value: what a recipe's YAML holds.
        where: where it stands, for errors; empty where the user knows.

    Raises:
        RecipeError: a key is unknown, missing, or has a value of the wrong kind.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(value, dict):
        raise RecipeError(f"{prefix}is not a map with merge_method and models")
    fields = {k: v for k, v in value.items() if v is not None}
    if isinstance(fields.get("models"), list):
        fields["models"] = [{"model": m} if isinstance(m, str) else m for m in fields["models"]]
    _check_keys(fields, Recipe, prefix)
    if isinstance(fields.get("tokenizer"), dict):
        for place, part, kind in parts_of(fields["tokenizer"]):
            _check_keys(part, kind, f"{prefix}{place}: ")
    try:
        return Recipe(**_tuples(fields))
    except RecipeError as error:
        raise RecipeError(f"{prefix}{error}") from None


def _first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a recipe's fields, in words of YAML."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    kinds = {"missing": "is missing", "extra_forbidden": "is no key that is known here"}
    message = kinds.get(first["type"], first["msg"])
    message = message.replace("a valid tuple", "a list").replace("a valid dictionary", "a map")
    message = message.replace("Input should", "should").removeprefix("Value error, ")
    return f"'{printable(place)}' {message}"


def _check_keys(value: Any, kind: type[BaseModel], prefix: str) -> None:
    """Refuses unknown keys at every level, with the nearest known one."""
    known = list(kind.model_fields)
    for key in value:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise RecipeError(f"{prefix}unknown key '{printable(str(key))}'{hint}")
    children = {"models": ModelEntry, "slices": OutputSlice, "sources": SliceSource, "modules": Module}
    for key, child in children.items():
        inner = value.get(key)
        items = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else []
        for item in items:
            if not isinstance(item, dict):
                raise RecipeError(f"{prefix}every entry of {key} is a map, not {printable(repr(item))}")
            _check_keys(item, child, f"{prefix}{key}: ")


def _tuples(value: Any) -> Any:
    """Keys without a value, as YAML writes them (``parameters:`` and nothing), count as absent."""
    if isinstance(value, dict):
        given = {k: v for k, v in value.items() if v is not None}
        kept = {k: v if k in ("parameters", "tokens") else _tuples(v) for k, v in given.items()}
        if isinstance(kept.get("tokens"), dict):
            kept["tokens"] = {token: _tuples(setting) for token, setting in kept["tokens"].items()}
        return kept
    return [_tuples(item) for item in value] if isinstance(value, list) else value


def with_options(recipe: Recipe, **changes: Any) -> Recipe:
    """Returns the recipe with some fields replaced, checked again."""
    return Recipe(**{**dict(recipe), **changes})
