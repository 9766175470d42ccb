"""The strategies: one kernel per file. ``STRATEGIES`` lists the classes in the order of the docs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from merge_models.merge.errors import RecipeError, did_you_mean, printable
from merge_models.merge.strategies.base import AbstractSpanStrategy as AbstractSpanStrategy
from merge_models.merge.strategies.base import AbstractStrategy as AbstractStrategy
from merge_models.merge.strategies.base import BaseModel as BaseModel
from merge_models.merge.strategies.base import Block as Block
from merge_models.merge.strategies.base import FixedMixture as FixedMixture
from merge_models.merge.strategies.base import Grain as Grain
from merge_models.merge.strategies.base import Mixture as Mixture
from merge_models.merge.strategies.base import Pass as Pass
from merge_models.merge.strategies.base import TensorSpec as TensorSpec
from merge_models.merge.strategies.parameters import parameters_of as parameters_of

if TYPE_CHECKING:
    from merge_models.merge.strategies.arcee_fusion import ArceeFusion as ArceeFusion
    from merge_models.merge.strategies.breadcrumbs import Breadcrumbs as Breadcrumbs
    from merge_models.merge.strategies.breadcrumbs import BreadcrumbsTies as BreadcrumbsTies
    from merge_models.merge.strategies.consensus import Consensus as Consensus
    from merge_models.merge.strategies.dare import DareLinear as DareLinear
    from merge_models.merge.strategies.dare import DareTies as DareTies
    from merge_models.merge.strategies.della import Della as Della
    from merge_models.merge.strategies.della import DellaLinear as DellaLinear
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

_CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Linear": (
        "linear",
        (
            "linear",
            "soup",
        ),
    ),
    "TaskArithmetic": ("task_arithmetic", ("task_arithmetic",)),
    "Orthogonal": (
        "orthogonal",
        (
            "orthogonal",
            "orthomerge",
        ),
    ),
    "Karcher": (
        "karcher",
        (
            "karcher",
            "fisher_rao",
        ),
    ),
    "UnitMean": ("unit_mean", ("unit_mean",)),
    "NormMean": ("norm_mean", ("norm_mean",)),
    "Slerp": ("slerp", ("slerp",)),
    "NuSlerp": ("nuslerp", ("nuslerp",)),
    "MultiSlerp": ("multislerp", ("multislerp",)),
    "ModelStock": ("model_stock", ("model_stock",)),
    "LogLinear": ("log_linear", ("log_linear",)),
    "Wasserstein": ("wasserstein", ("wasserstein",)),
    "Ties": ("ties", ("ties",)),
    "DareLinear": ("dare", ("dare_linear",)),
    "DareTies": ("dare", ("dare_ties",)),
    "Breadcrumbs": ("breadcrumbs", ("breadcrumbs",)),
    "BreadcrumbsTies": ("breadcrumbs", ("breadcrumbs_ties",)),
    "Della": ("della", ("della",)),
    "DellaLinear": ("della", ("della_linear",)),
    "Sce": ("sce", ("sce",)),
    "Ram": ("ram", ("ram",)),
    "RamPlus": ("ram", ("ramplus_tl",)),
    "Pcb": ("pcb", ("pcb",)),
    "Consensus": ("consensus", ("consensus",)),
    "MagMax": (
        "magmax",
        (
            "magmax",
            "max_abs",
        ),
    ),
    "NearSwap": ("nearswap", ("nearswap",)),
    "ArceeFusion": ("arcee_fusion", ("arcee_fusion",)),
    "Passthrough": ("passthrough", ("passthrough",)),
    "Stochastic": ("stochastic", ("stochastic",)),
}
"""Class -> (its module, its name and aliases in recipes), in the order of the docs.

Stated here as well as in the classes, so that a strategy is found without importing the others; a test
compares the two.
"""


def __getattr__(name: str) -> Any:
    if name == "STRATEGIES":
        return tuple(_load(kind) for kind in _CLASSES)
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)


def _load(kind: str) -> type[AbstractStrategy]:
    return getattr(importlib.import_module(f"{__name__}.{_CLASSES[kind][0]}"), kind)


def find_strategy(name: str) -> type[AbstractStrategy]:
    """The strategy class of that name or alias.

    Raises:
        RecipeError: there is none; the message suggests the nearest name.
    """
    by_name = {word: kind for kind, (_, words) in _CLASSES.items() for word in words}
    if name not in by_name:
        raise RecipeError(f"unknown merge method '{printable(name)}'{did_you_mean(name, by_name)}")
    return _load(by_name[name])
