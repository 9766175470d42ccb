"""Linear: the weighted mean; uniform weights are the model soup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.strategies.families.span import FixedMixture, fixed_kernel
from merge_models.merge.strategies.families.weights import normalised


@dataclass(frozen=True)
class Linear(AbstractStrategy):
    """Weighted mean of the parents: ``sum_i w_i x_i``, weights divided by their sum.

    Kernel: linear. Carrier: flat space. Source: Wortsman et al. 2022, "Model soups" (2203.05482).
    mergekit averages a ``base_model`` in as one more parent; here a base only donates config and tokenizer.
    """

    name: ClassVar[str] = "linear"
    aliases: ClassVar[tuple[str, ...]] = ("soup",)
    source: ClassVar[str] = "Wortsman et al. 2022, arXiv:2203.05482"

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True)
    normalize: bool = parameter(True, "divide the weights by their sum")

    def validate(self, count: int) -> None:
        self._shares()

    def kernel(self, case: Case) -> Kernel:
        return fixed_kernel(case, FixedMixture(self._shares()))

    def _shares(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return normalised(self.weight) if self.normalize else self.weight
