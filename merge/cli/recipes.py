"""Recipes from the command line: models and options as one, or a file with its path before what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.errors import RecipeError, counted

if TYPE_CHECKING:
    from merge_models.merge.recipe import Recipe


def strategy_options(command: Any) -> Any:
    """What makes a recipe: models, strategy, parameters."""
    options = [
        click.argument("models", nargs=-1, required=True),
        click.option("-m", "--method", default="linear", show_default=True, help="Strategy."),
        click.option("--base", help="Base model: path or Hub id."),
        click.option("--weights", help="One weight per model: .5,.3,.2"),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter."),
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
    from merge_models.merge.recipe import parse_recipe

    shares = _weights(weights, len(models))
    parameters = dict(_setting(text) for text in settings)
    if shares and "weight" in parameters:
        raise RecipeError("--weights and --set weight both give weights; leave one out")
    entries = [
        {"model": model, "parameters": {"weight": share} if shares else {}}
        for model, share in zip(models, shares or [None] * len(models), strict=True)
    ]
    return parse_recipe(
        {
            "merge_method": method,
            "models": entries,
            "base_model": base,
            "parameters": parameters,
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


def _setting(text: str) -> tuple[str, Any]:
    from merge_models.merge.recipe import parse_yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set '{text}' is not KEY=VALUE; write --set lambda=0.5")
    try:
        return key, parse_yaml(value)
    except RecipeError as error:
        raise RecipeError(f"--set '{text}': {error}") from None


def with_rounding(options: dict[str, Any], recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes with the rounding that was asked for, which is part of what is made."""
    from merge_models.merge.recipe import with_options

    asked = options.pop("rounding")
    return [with_options(recipe, rounding=asked) if asked else recipe for recipe in recipes]
