"""Merges neural-network checkpoints on the geometry that they live in.

    from merge_models.merge import merge
    from merge_models.merge.strategies import Linear

    state = merge([model_a, model_b], Linear(weight=(0.7, 0.3)))
    merge(["runs/a", "runs/b"], Linear(), out="runs/merged")

Names are loaded on first use, so that the command line answers before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merge_models.merge.errors import ChangedError as ChangedError
from merge_models.merge.errors import CheckpointError as CheckpointError
from merge_models.merge.errors import MergeError as MergeError
from merge_models.merge.errors import NonFiniteError as NonFiniteError
from merge_models.merge.errors import PlanError as PlanError
from merge_models.merge.errors import RecipeError as RecipeError

if TYPE_CHECKING:
    from merge_models.merge.api.merging import merge as merge
    from merge_models.merge.api.merging import soup as soup
    from merge_models.merge.api.reproduce import reproduce as reproduce
    from merge_models.merge.api.running import MergeResult as MergeResult
    from merge_models.merge.api.running import run_recipe as run_recipe
    from merge_models.merge.api.several import run_recipes as run_recipes
    from merge_models.merge.publishing.preparation import prepare as prepare
    from merge_models.merge.publishing.prepared import Prepared as Prepared
    from merge_models.merge.publishing.verify import verify as verify
    from merge_models.merge.recipes.recipe import Recipe as Recipe
    from merge_models.merge.recipes.recipe import load_recipe as load_recipe
    from merge_models.merge.recipes.recipe import load_recipes as load_recipes

_HOMES = {
    "merge": "api.merging",
    "soup": "api.merging",
    "reproduce": "api.reproduce",
    "MergeResult": "api.running",
    "run_recipe": "api.running",
    "run_recipes": "api.several",
    "Prepared": "publishing.prepared",
    "prepare": "publishing.preparation",
    "verify": "publishing.verify",
    "Recipe": "recipes.recipe",
    "load_recipe": "recipes.recipe",
    "load_recipes": "recipes.recipe",
}

__all__ = [
    "ChangedError",
    "CheckpointError",
    "MergeError",
    "MergeResult",
    "NonFiniteError",
    "PlanError",
    "Prepared",
    "Recipe",
    "RecipeError",
    "load_recipe",
    "load_recipes",
    "merge",
    "prepare",
    "reproduce",
    "run_recipe",
    "run_recipes",
    "soup",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Loads a name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
