"""Recipes: mergekit's YAML dialect, checked strictly, or the same made in Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merge_models.merge.checkpoint.dtypes import DType, parse_dtype
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.errors import RecipeError, did_you_mean
from merge_models.merge.strategies import AbstractStrategy, find_strategy, parameters_of
from merge_models.merge.strategies.base import BaseModel as BaseUse

MAX_RECIPE = 4 << 20
_LATER = {
    "slices": "layer slices",
    "modules": "modules",
    "tokenizer_source": "merged tokenizers",
    "tokenizer": "merged tokenizers",
    "chat_template": "chat templates",
}


class ModelEntry(BaseModel):
    """One parent: its path or Hub id, and its own parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Recipe(BaseModel):
    """What to merge and how. Field names are mergekit's.

    Attributes:
        merge_method: a strategy's name.
        models: the parents.
        base_model: the base; it also donates config, tokenizer and tensor order (else the first parent).
        parameters: parameters of the strategy for all models.
        dtype: dtype of the output; arithmetic is float32 or wider whatever it says.
        out_dtype: the same; wins over ``dtype``.
        seed: key of all randomness.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    merge_method: str
    models: tuple[ModelEntry, ...]
    base_model: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    seed: int = 0

    def parents(self) -> list[ModelEntry]:
        """The models that are merged: without the base where the strategy measures against it."""
        strategy = find_strategy(self.merge_method)
        others = [entry for entry in self.models if entry.model != self.base_model]
        if strategy.base_is_parent and self.base_model is not None:
            first = [entry for entry in self.models if entry.model == self.base_model]
            return [*(first or [ModelEntry(model=self.base_model)]), *others]
        return list(self.models) if strategy.base_model is BaseUse.UNUSED else others

    def output_dtype(self) -> DType | None:
        """The dtype to write, or None to keep that of the sources."""
        name = self.out_dtype or self.dtype
        return parse_dtype(name) if name else None

    def strategy(self) -> AbstractStrategy:
        """The strategy with every parameter resolved.

        Raises:
            RecipeError: a parameter is unknown, given twice, of a wrong type, or out of range.
        """
        kind = find_strategy(self.merge_method)
        known = parameters_of(kind)
        entries = self.parents()
        if not entries:
            raise RecipeError("models: names no model to merge besides the base")
        _check_known(self.parameters, known, "parameters", kind.name)
        for entry in entries:
            _check_known(entry.parameters, known, f"parameters of {entry.model}", kind.name)
        values: dict[str, Any] = {}
        for name, parameter in known.items():
            shared = self.parameters.get(name, parameter.default)
            given = [entry.parameters.get(name, shared) for entry in entries]
            if not parameter.per_model and any(value != shared for value in given):
                raise RecipeError(f"parameter '{name}' of {kind.name} is one for all models")
            _check_scalars(name, given)
            values[parameter.field] = tuple(given) if parameter.per_model else shared
        return kind(**values).resolved(len(entries))

    def strategy_for(self) -> Callable[[str], AbstractStrategy]:
        """Gives the resolved strategy of each output tensor by its name."""
        strategy = self.strategy()
        return lambda name: strategy

    def document(self) -> dict[str, Any]:
        """The recipe as plain values, without what is unset."""
        return self.model_dump(exclude_defaults=True, mode="json")

    def yaml(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True)


def _check_known(given: Mapping[str, Any], known: Mapping[str, Any], where: str, method: str) -> None:
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise RecipeError(f"{where}: {method} has no parameter '{printable(str(name))}'{hint}")


def _check_scalars(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, (list, dict)):
            raise RecipeError(
                f"parameter '{name}': lists (gradients) and filters are not supported yet; give one value"
            )


def recipe_of(
    strategy: AbstractStrategy,
    models: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> Recipe:
    """The recipe that merges ``models`` with a strategy object."""
    names = [os.fspath(model) for model in models]
    resolved = strategy.resolved(len(names))
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
        merge_method=strategy.name,
        models=tuple(ModelEntry(model=n, parameters=p) for n, p in zip(names, own, strict=True)),
        base_model=None if base is None else os.fspath(base),
        parameters=shared,
        dtype=dtype,
        seed=seed,
    )


def load_recipe(file: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe file.

    Raises:
        RecipeError: it is missing, no YAML, or no valid recipe; the message names the key.
    """
    path = Path(file)
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_RECIPE + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_RECIPE:
        raise RecipeError(f"{path}: larger than {MAX_RECIPE >> 20} MiB; not a recipe")
    try:
        value = yaml.load(data.decode("utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" near line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "not readable as YAML"
        raise RecipeError(f"{path}: not valid YAML{line}: {reason}") from None
    return parse_recipe(value, str(path))


class _StrictLoader(yaml.SafeLoader):
    """Plain values only: no aliases (which can expand without bound), no key given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{printable(str(key))}' stands twice",
                    problem_mark=node.start_mark,
                )
        return super().construct_mapping(node, deep)


def parse_recipe(value: Any, where: str = "recipe") -> Recipe:
    """A recipe from plain values.

    Raises:
        RecipeError: a key is unknown, missing, not supported yet, or has a value of the wrong kind.
    """
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: is not a map with merge_method and models")
    for key, what in _LATER.items():
        if value.get(key) is not None:
            raise RecipeError(f"{where}: '{key}' ({what}) is not supported yet; nothing was merged")
    value = {k: v for k, v in value.items() if k not in _LATER}
    for key in value:
        if key not in Recipe.model_fields:
            hint = did_you_mean(str(key), [*Recipe.model_fields, *_LATER])
            raise RecipeError(f"{where}: unknown key '{printable(str(key))}'{hint}")
    if "models" in value and isinstance(value["models"], list):
        value["models"] = tuple(_entry(item, where) for item in value["models"])
    value["base_model"] = _model_name(value.get("base_model"), where)
    value = {k: v for k, v in value.items() if v is not None}
    try:
        return Recipe(**value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = "is missing" if first["type"] == "missing" else first["msg"]
        raise RecipeError(f"{where}: '{printable(place)}' {message}") from None


def _entry(item: Any, where: str) -> dict[str, Any]:
    if isinstance(item, str):
        return {"model": item}
    if not isinstance(item, dict) or "model" not in item:
        raise RecipeError(f"{where}: every entry of models needs 'model: PATH'")
    for key in item:
        if key not in ModelEntry.model_fields:
            raise RecipeError(
                f"{where}: unknown key '{printable(str(key))}' in models"
                f"{did_you_mean(str(key), ModelEntry.model_fields)}"
            )
    return {
        "model": _model_name(item["model"], where),
        "parameters": item.get("parameters") or {},
    }


def _model_name(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise RecipeError(f"{where}: a model is named by its path or Hub id, not by {type(value).__name__}")


def with_options(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with some fields replaced, checked again."""
    return Recipe(**{**dict(recipe), **changes})
