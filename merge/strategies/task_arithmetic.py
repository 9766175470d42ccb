"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from merge_models.merge.strategies.base import (
    NOT_DIVIDED,
    AbstractKernelStrategy,
    BaseModel,
    Block,
    Mixer,
    divisor_of,
    is_zero_sum,
)
from merge_models.merge.strategies.parameters import parameter

_STEEP = 2.0**20
"""Scales that add up to more are multiplied with differences: the rounding of a model times its scale would
show beside the base, which float32 and float64 sums of less never let it."""


@dataclass(frozen=True)
class TaskArithmetic(AbstractKernelStrategy):
    """``base + lambda * sum_i w_i (x_i - base)``; a negative weight takes a skill away.

    Kernel: linear. Carrier: flat space about the base. Source: Ilharco et al. 2023, "Editing models with
    task arithmetic" (2212.04089).
    """

    name: ClassVar[str] = "task_arithmetic"
    source: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    makes_copies: ClassVar[bool] = False

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their sum")
    normalize: bool = parameter(False, "divide the weights by their sum")

    @property
    def remark(self) -> str:
        return NOT_DIVIDED if self.normalize and is_zero_sum(self._weights) else ""

    def mixer(self, block: Block, survey: Any) -> Mixer:
        """The sum of models and base by their coefficients, rounded once; of differences where that is
        not exact enough."""
        del block, survey
        scales = self._scales()
        if math.fsum(map(abs, scales)) > _STEEP:
            return _sum_of_differences(scales)
        from merge_models.merge.kernels import weighted_sum

        weights = (*scales, math.fsum([1.0, *[-scale for scale in scales]]))
        return lambda sources, out: weighted_sum(sources, weights, out)

    def _scales(self) -> tuple[float, ...]:
        divisor = divisor_of(self._weights) if self.normalize else 1.0
        return tuple(self.lambda_ * (weight / divisor) for weight in self._weights)

    @property
    def _weights(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return self.weight


def _sum_of_differences(scales: tuple[float, ...]) -> Mixer:
    from merge_models.merge.kernels.task_vectors import mix_into
    from merge_models.merge.kernels.terms import Mixing, Rule, Thinned

    whole, mixing = [Thinned()] * len(scales), Mixing(Rule.SUM, scales)
    return lambda sources, out: mix_into(sources[:-1], sources[-1], whole, mixing, out)
