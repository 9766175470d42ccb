"""The strategies: one method a file. ``STRATEGIES`` lists their classes in the order of the docs.

A strategy is added by its file, a line here, and a row in the tests' table of cases.
"""

from __future__ import annotations

from merge_models.merge.contract.strategy import AbstractStrategy as AbstractStrategy
from merge_models.merge.contract.strategy import BaseModel as BaseModel

from merge_models.merge.strategies.linear import Linear as Linear  # isort: skip
from merge_models.merge.strategies.task_arithmetic import TaskArithmetic as TaskArithmetic  # isort: skip
from merge_models.merge.strategies.orthogonal import Orthogonal as Orthogonal  # isort: skip
from merge_models.merge.strategies.karcher import Karcher as Karcher  # isort: skip
from merge_models.merge.strategies.unit_mean import UnitMean as UnitMean  # isort: skip
from merge_models.merge.strategies.norm_mean import NormMean as NormMean  # isort: skip
from merge_models.merge.strategies.slerp import Slerp as Slerp  # isort: skip
from merge_models.merge.strategies.nuslerp import NuSlerp as NuSlerp  # isort: skip
from merge_models.merge.strategies.multislerp import MultiSlerp as MultiSlerp  # isort: skip
from merge_models.merge.strategies.model_stock import ModelStock as ModelStock  # isort: skip
from merge_models.merge.strategies.log_linear import LogLinear as LogLinear  # isort: skip
from merge_models.merge.strategies.wasserstein import Wasserstein as Wasserstein  # isort: skip
from merge_models.merge.strategies.frechet import Frechet as Frechet  # isort: skip
from merge_models.merge.strategies.ties import Ties as Ties  # isort: skip
from merge_models.merge.strategies.dare import DareLinear as DareLinear  # isort: skip
from merge_models.merge.strategies.dare import DareTies as DareTies  # isort: skip
from merge_models.merge.strategies.breadcrumbs import Breadcrumbs as Breadcrumbs  # isort: skip
from merge_models.merge.strategies.breadcrumbs import BreadcrumbsTies as BreadcrumbsTies  # isort: skip
from merge_models.merge.strategies.della import Della as Della  # isort: skip
from merge_models.merge.strategies.della import DellaLinear as DellaLinear  # isort: skip
from merge_models.merge.strategies.sce import Sce as Sce  # isort: skip
from merge_models.merge.strategies.ram import Ram as Ram  # isort: skip
from merge_models.merge.strategies.ram import RamPlus as RamPlus  # isort: skip
from merge_models.merge.strategies.pcb import Pcb as Pcb  # isort: skip
from merge_models.merge.strategies.consensus import Consensus as Consensus  # isort: skip
from merge_models.merge.strategies.magmax import MagMax as MagMax  # isort: skip
from merge_models.merge.strategies.nearswap import NearSwap as NearSwap  # isort: skip
from merge_models.merge.strategies.arcee_fusion import ArceeFusion as ArceeFusion  # isort: skip
from merge_models.merge.strategies.passthrough import Passthrough as Passthrough  # isort: skip
from merge_models.merge.strategies.stochastic import Stochastic as Stochastic  # isort: skip

STRATEGIES: tuple[type[AbstractStrategy], ...] = tuple(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, AbstractStrategy) and kind is not AbstractStrategy
)
"""Every strategy of the package, in the order of the imports above."""
