"""Merge neural-network checkpoints.

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
    from merge_models.merge.api import MergeResult as MergeResult
    from merge_models.merge.api import merge as merge
    from merge_models.merge.api import run_recipe as run_recipe
    from merge_models.merge.api import soup as soup
    from merge_models.merge.multi import run_recipes as run_recipes
    from merge_models.merge.preparation import Prepared as Prepared
    from merge_models.merge.preparation import prepare as prepare
    from merge_models.merge.recipe import Recipe as Recipe
    from merge_models.merge.recipe import load_recipe as load_recipe
    from merge_models.merge.recipe import load_recipes as load_recipes
    from merge_models.merge.strategies import STRATEGIES as STRATEGIES
    from merge_models.merge.strategies import AbstractStrategy as AbstractStrategy
    from merge_models.merge.strategies import ArceeFusion as ArceeFusion
    from merge_models.merge.strategies import Breadcrumbs as Breadcrumbs
    from merge_models.merge.strategies import BreadcrumbsTies as BreadcrumbsTies
    from merge_models.merge.strategies import Consensus as Consensus
    from merge_models.merge.strategies import DareLinear as DareLinear
    from merge_models.merge.strategies import DareTies as DareTies
    from merge_models.merge.strategies import Della as Della
    from merge_models.merge.strategies import DellaLinear as DellaLinear
    from merge_models.merge.strategies import Karcher as Karcher
    from merge_models.merge.strategies import Linear as Linear
    from merge_models.merge.strategies import LogLinear as LogLinear
    from merge_models.merge.strategies import MagMax as MagMax
    from merge_models.merge.strategies import ModelStock as ModelStock
    from merge_models.merge.strategies import MultiSlerp as MultiSlerp
    from merge_models.merge.strategies import NearSwap as NearSwap
    from merge_models.merge.strategies import NormMean as NormMean
    from merge_models.merge.strategies import NuSlerp as NuSlerp
    from merge_models.merge.strategies import Orthogonal as Orthogonal
    from merge_models.merge.strategies import Passthrough as Passthrough
    from merge_models.merge.strategies import Pcb as Pcb
    from merge_models.merge.strategies import Ram as Ram
    from merge_models.merge.strategies import RamPlus as RamPlus
    from merge_models.merge.strategies import Sce as Sce
    from merge_models.merge.strategies import Slerp as Slerp
    from merge_models.merge.strategies import Stochastic as Stochastic
    from merge_models.merge.strategies import TaskArithmetic as TaskArithmetic
    from merge_models.merge.strategies import Ties as Ties
    from merge_models.merge.strategies import UnitMean as UnitMean
    from merge_models.merge.strategies import Wasserstein as Wasserstein

_HOMES = {
    "api": ("MergeResult", "merge", "run_recipe", "soup"),
    "multi": ("run_recipes",),
    "preparation": ("Prepared", "prepare"),
    "recipe": ("Recipe", "load_recipe", "load_recipes"),
}


__all__ = [
    "AbstractStrategy",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "ChangedError",
    "CheckpointError",
    "Consensus",
    "DareLinear",
    "DareTies",
    "Della",
    "DellaLinear",
    "Karcher",
    "Linear",
    "LogLinear",
    "MagMax",
    "MergeError",
    "MergeResult",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NonFiniteError",
    "NormMean",
    "NuSlerp",
    "Orthogonal",
    "Passthrough",
    "Pcb",
    "PlanError",
    "Prepared",
    "Ram",
    "RamPlus",
    "Recipe",
    "RecipeError",
    "STRATEGIES",
    "Sce",
    "Slerp",
    "Stochastic",
    "TaskArithmetic",
    "Ties",
    "UnitMean",
    "Wasserstein",
    "load_recipe",
    "load_recipes",
    "merge",
    "prepare",
    "run_recipe",
    "run_recipes",
    "soup",
]


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), "strategies")
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), name, None)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
