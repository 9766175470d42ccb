"""Recipes from the command line: models and options as one, or a file with its path before what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.errors import RecipeError, counted

if TYPE_CHECKING:
    from merge_models.merge.recipes.recipe import Recipe


def strategy_options(command: Any) -> Any:
    """What makes a recipe: models, strategy, parameters."""
    options = [
        click.argument("models", nargs=-1, required=True),
        click.option("-m", "--method", default="linear", show_default=True, help="Strategy."),
        click.option("--base", help="Base model: path or Hub id."),
        click.option("--weights", help="One weight per model: .5,.3,.2"),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="A parameter (repeat): density=.3, one value per model: density=.3,.5, or a gradient from"
            " the first layer to the last: density=[.3,.5].",
        ),
        click.option("--dtype", help="Output dtype [default: that of the models]."),
        click.option("--seed", default=0, show_default=True, help="Key of all randomness."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def naming(recipe: Path) -> Iterator[None]:
    """Puts the recipe's path before what is wrong with it."""
    try:
        yield
    except RecipeError as error:
        named = str(error).startswith(f"{recipe}: ")
        raise RecipeError(str(error) if named else f"{recipe}: {error}") from None


def recipe_from(
    models: tuple[str, ...],
    method: str,
    base: str | None,
    weights: str | None,
    settings: tuple[str, ...],
    dtype: str | None,
    seed: int,
) -> Recipe:
    """The recipe that ``strategy_options`` say."""
    from merge_models.merge.contract.parameters import parameters_of
    from merge_models.merge.recipes.accepted import unknown_parameter
    from merge_models.merge.recipes.recipe import check_more_than_base, parse_recipe
    from merge_models.merge.strategies.registry import find_strategy

    shares = _weights(weights, len(models))
    shared, own = _parameters(settings, method, len(models))
    if shares and ("weight" in shared or "weight" in own):
        raise RecipeError("--weights and --set weight both give weights; leave one out")
    own = {**own, **({"weight": shares} if shares else {})}
    strategy = find_strategy(method)
    check_more_than_base(strategy, models, base)
    for key in (*shared, *own):
        if key not in parameters_of(strategy):  # recipes may have such, for mergekit's sake
            raise unknown_parameter(strategy, key)
    entries = [
        {"model": model, "parameters": {key: values[number] for key, values in own.items()}}
        for number, model in enumerate(models)
    ]
    return parse_recipe(
        {
            "merge_method": method,
            "models": entries,
            "base_model": base,
            "parameters": shared,
            "dtype": dtype,
            "seed": seed,
        },
        where="",
    )


def parse_weights(text: str | None) -> list[float] | None:
    """``.5,.3,.2`` as numbers.

    Raises:
        RecipeError: it is no list of numbers.
    """
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(" ", "").split(",")]
    except ValueError:
        raise RecipeError(f"--weights '{text}' is not a list of numbers; write .5,.3,.2") from None


def _weights(text: str | None, count: int) -> list[float] | None:
    values = parse_weights(text)
    if values is not None and len(values) != count:
        raise RecipeError(
            f"--weights has {counted(len(values), 'value')} for {counted(count, 'model')}; give one per model"
        )
    return values


def _parameters(
    settings: Sequence[str], method: str, count: int
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Parameters that are one for all models, and those with one value per model."""
    from merge_models.merge.contract.parameters import parameters_of
    from merge_models.merge.strategies.registry import find_strategy

    known = parameters_of(find_strategy(method)) if settings else {}
    shared: dict[str, Any] = {}
    own: dict[str, list[Any]] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set '{text}' is not KEY=VALUE; write --set lambda=0.5")
        if not value.strip():
            raise RecipeError(f"--set '{text}' has no value; write --set {key}=VALUE, or leave it out")
        if key in shared or key in own:
            raise RecipeError(f"--set {key} stands twice; leave one out")
        if key not in known or not _is_list(value):
            shared[key] = _value(text, value)
        elif not known[key].per_model:
            raise RecipeError(
                f"--set '{text}': '{key}' is one for all models; a gradient over depth is {key}=[{value}]"
            )
        else:
            own[key] = [_value(text, word) for word in value.split(",")]
            if len(own[key]) != count:
                raise RecipeError(
                    f"--set '{text}' has {counted(len(own[key]), 'value')} for {counted(count, 'model')};"
                    f" give one per model, or a gradient over depth: {key}=[{value}]"
                )
    return shared, own


def _is_list(value: str) -> bool:
    """Whether it is a plain list: ``.3,.5``; brackets and quotes are YAML's."""
    return "," in value and not any(sign in value for sign in "[]{}\"'")


def _value(text: str, value: str) -> Any:
    from merge_models.merge.recipes.strict_yaml import parse_yaml

    try:
        if not value.strip():
            raise RecipeError("a value is empty; write one value per model: .3,.5")
        return parse_yaml(value)
    except RecipeError as error:
        raise RecipeError(f"--set '{text}': {error}") from None


def with_rounding(options: dict[str, Any], recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes with the rounding that was asked for, which is part of what is made."""
    from merge_models.merge.recipes.recipe import with_options

    asked = options.pop("rounding")
    return [with_options(recipe, rounding=asked) if asked else recipe for recipe in recipes]
