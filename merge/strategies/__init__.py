"""The strategies: one kernel per file. ``STRATEGIES`` lists the classes in the order of the docs."""

from __future__ import annotations

from merge_models.merge.errors import RecipeError, did_you_mean, printable
from merge_models.merge.strategies.arcee_fusion import ArceeFusion as ArceeFusion
from merge_models.merge.strategies.base import (
    AbstractSpanStrategy as AbstractSpanStrategy,
)
from merge_models.merge.strategies.base import AbstractStrategy as AbstractStrategy
from merge_models.merge.strategies.base import BaseModel as BaseModel
from merge_models.merge.strategies.base import Block as Block
from merge_models.merge.strategies.base import Grain as Grain
from merge_models.merge.strategies.base import Mixture as Mixture
from merge_models.merge.strategies.base import Pass as Pass
from merge_models.merge.strategies.base import TensorSpec as TensorSpec
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
from merge_models.merge.strategies.parameters import parameters_of as parameters_of
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

STRATEGIES: tuple[type[AbstractStrategy], ...] = (
    Linear,
    TaskArithmetic,
    Orthogonal,
    Karcher,
    UnitMean,
    NormMean,
    Slerp,
    NuSlerp,
    MultiSlerp,
    ModelStock,
    LogLinear,
    Wasserstein,
    Ties,
    DareLinear,
    DareTies,
    Breadcrumbs,
    BreadcrumbsTies,
    Della,
    DellaLinear,
    Sce,
    Ram,
    RamPlus,
    Pcb,
    Consensus,
    MagMax,
    NearSwap,
    ArceeFusion,
    Passthrough,
    Stochastic,
)


def find_strategy(name: str) -> type[AbstractStrategy]:
    """The strategy class of that name or alias.

    Raises:
        RecipeError: there is none; the message suggests the nearest name.
    """
    by_name = {word: s for s in STRATEGIES for word in (s.name, *s.aliases)}
    if name not in by_name:
        raise RecipeError(f"unknown merge method '{printable(name)}'{did_you_mean(name, by_name)}")
    return by_name[name]
