"""The strategies: one method a file. ``STRATEGIES`` holds their classes in the order of the docs.

A strategy is added by its file, its two lines here (the import tells type checkers what the table tells
Python), and a row in the tests' table of cases. Files are loaded on first use: a merge needs one of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merge_models.merge.contract.strategy import AbstractStrategy as AbstractStrategy
from merge_models.merge.contract.strategy import BaseModel as BaseModel

if TYPE_CHECKING:
    from merge_models.merge.strategies.arcee_fusion import ArceeFusion as ArceeFusion
    from merge_models.merge.strategies.breadcrumbs import Breadcrumbs as Breadcrumbs
    from merge_models.merge.strategies.breadcrumbs import BreadcrumbsTies as BreadcrumbsTies
    from merge_models.merge.strategies.consensus import Consensus as Consensus
    from merge_models.merge.strategies.dare import DareLinear as DareLinear
    from merge_models.merge.strategies.dare import DareTies as DareTies
    from merge_models.merge.strategies.della import Della as Della
    from merge_models.merge.strategies.della import DellaLinear as DellaLinear
    from merge_models.merge.strategies.frechet import Frechet as Frechet
    from merge_models.merge.strategies.karcher import Karcher as Karcher
    from merge_models.merge.strategies.linear import Linear as Linear
    from merge_models.merge.strategies.log_linear import LogLinear as LogLinear
    from merge_models.merge.strategies.magmax import MagMax as MagMax
    from merge_models.merge.strategies.model_stock import ModelStock as ModelStock
    from merge_models.merge.strategies.multislerp import MultiSlerp as MultiSlerp
    from merge_models.merge.strategies.nearswap import NearSwap as NearSwap
    from merge_models.merge.strategies.norm_mean import NormMean as NormMean
    from merge_models.merge.strategies.nuslerp import NuSlerp as NuSlerp
    from merge_models.merge.strategies.orthogonal import Orthogonal as Orthogonal
    from merge_models.merge.strategies.passthrough import Passthrough as Passthrough
    from merge_models.merge.strategies.pcb import Pcb as Pcb
    from merge_models.merge.strategies.ram import Ram as Ram
    from merge_models.merge.strategies.ram import RamPlus as RamPlus
    from merge_models.merge.strategies.sce import Sce as Sce
    from merge_models.merge.strategies.slerp import Slerp as Slerp
    from merge_models.merge.strategies.stochastic import Stochastic as Stochastic
    from merge_models.merge.strategies.task_arithmetic import TaskArithmetic as TaskArithmetic
    from merge_models.merge.strategies.ties import Ties as Ties
    from merge_models.merge.strategies.unit_mean import UnitMean as UnitMean
    from merge_models.merge.strategies.wasserstein import Wasserstein as Wasserstein

    STRATEGIES: tuple[type[AbstractStrategy], ...]
    """Every strategy of the package, in the order of ``HOMES``."""

HOMES = {
    "Linear": "linear",
    "TaskArithmetic": "task_arithmetic",
    "Orthogonal": "orthogonal",
    "Karcher": "karcher",
    "UnitMean": "unit_mean",
    "NormMean": "norm_mean",
    "Slerp": "slerp",
    "NuSlerp": "nuslerp",
    "MultiSlerp": "multislerp",
    "ModelStock": "model_stock",
    "LogLinear": "log_linear",
    "Wasserstein": "wasserstein",
    "Frechet": "frechet",
    "Ties": "ties",
    "DareLinear": "dare",
    "DareTies": "dare",
    "Breadcrumbs": "breadcrumbs",
    "BreadcrumbsTies": "breadcrumbs",
    "Della": "della",
    "DellaLinear": "della",
    "Sce": "sce",
    "Ram": "ram",
    "RamPlus": "ram",
    "Pcb": "pcb",
    "Consensus": "consensus",
    "MagMax": "magmax",
    "NearSwap": "nearswap",
    "ArceeFusion": "arcee_fusion",
    "Passthrough": "passthrough",
    "Stochastic": "stochastic",
}
"""The file of each strategy, by the name of its class, in the order of the docs."""


def __getattr__(name: str) -> Any:
    """Loads a strategy from its file; for ``STRATEGIES``, all of them."""
    if name == "STRATEGIES":
        value: Any = tuple(getattr(importlib.import_module(__name__), kind) for kind in HOMES)
    elif name in HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
