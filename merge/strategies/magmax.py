"""MagMax: of each element's task vectors the largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.families.task_vectors import Terms, term_kernel


@dataclass(frozen=True)
class MagMax(AbstractStrategy):
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

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(case, self._terms)

    def _terms(self, block: Block, survey: None) -> Terms:
        del survey
        assert isinstance(self.weight, tuple)
        mixing = Mixing(Rule.LARGEST, self.weight, normalize=True, scale=self.lambda_)
        return [Thinned()] * len(block.spans), mixing
