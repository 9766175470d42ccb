"""MagMax: of each element's task vectors the largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.base import AbstractTermStrategy, BaseModel, Block, Terms
from merge_models.merge.strategies.parameters import parameter


@dataclass(frozen=True)
class MagMax(AbstractTermStrategy):
    """Adds to each element of the base the task vector that is the largest there.

    Weights scale task vectors before they are compared; of two that differ in sign only, the positive one is
    taken. Kernel: maximum magnitude. Carrier: flat space about the base. Source: Marczak et al. 2024,
    "MagMax" (2407.06322).
    """

    name: ClassVar[str] = "magmax"
    aliases: ClassVar[tuple[str, ...]] = ("max_abs",)
    source: ClassVar[str] = "Marczak et al. 2024, arXiv:2407.06322"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their maximum")

    def terms(self, block: Block, survey: None) -> Terms:
        del survey
        assert isinstance(self.weight, tuple)
        mixing = Mixing(Rule.LARGEST, self.weight, normalize=True, scale=self.lambda_)
        return [Thinned()] * len(block.spans), mixing
