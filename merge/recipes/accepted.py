"""Which parameters a recipe may give: its method's, and, without effect, those of mergekit's others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.errors import RecipeError, did_you_mean, printable
from merge_models.merge.recipes.mergekit import METHODS, PARAMETERS, REQUIRED
from merge_models.merge.strategies import AbstractStrategy
from merge_models.merge.strategies.registry import find_strategy

if TYPE_CHECKING:
    from merge_models.merge.recipes.recipe import Recipe


def ignored_by(strategy: type[AbstractStrategy]) -> list[str]:
    """Returns the parameters of mergekit's methods that a strategy does not have: accepted, and told by
    plans."""
    return sorted(PARAMETERS - {*parameters_of(strategy)})


def unknown_parameter(strategy: type[AbstractStrategy], key: str) -> RecipeError:
    """Returns the error for a parameter that a strategy does not have."""
    known = sorted(parameters_of(strategy))
    hint = did_you_mean(key, known) if known else "; it has none"
    listed = "" if "known:" in hint or len(known) < 2 else f" {strategy.name} has {', '.join(known)}"
    return RecipeError(f"{strategy.name} has no parameter '{printable(key)}'{hint}{listed}")


def check_parameters(recipe: Recipe) -> list[str]:
    """Checks the names of a recipe's parameters, and where they stand.

    Returns:
        Remarks on those without effect.

    Raises:
        RecipeError: a name is nobody's, or a parameter that is one for all models is given to one.
    """
    strategy = find_strategy(recipe.merge_method)
    known = parameters_of(strategy)
    for level in recipe.levels():
        for key in level:
            if key not in known and key not in PARAMETERS:
                raise unknown_parameter(strategy, str(key))
    as_there = ", as in mergekit" if strategy.name in METHODS else ""
    given = _given(recipe.levels())
    told = [
        f"ignored: {key} changes nothing in {strategy.name}{as_there}" for key in given if key not in known
    ]
    for key in _given(recipe.own_levels()):
        if key not in known or known[key].per_model:
            continue
        elsewhere = key not in REQUIRED or key in _given(recipe.shared_levels())
        if not (strategy.name in METHODS and key in PARAMETERS and elsewhere):
            raise RecipeError(
                f"parameter '{key}' of {strategy.name} is one for all models: give it under the recipe's"
                " 'parameters', not a model's"
            )
        told.append(
            f"ignored: {key} of a single model changes nothing in {strategy.name}, as in mergekit; to use it,"
            " give it under the recipe's 'parameters'"
        )
    return told


def _given(levels: Iterable[dict[str, object]]) -> list[str]:
    """The parameters that have a value in any level, each once."""
    keys = (key for level in levels for key, value in level.items() if value is not None)
    return list(dict.fromkeys(keys))
