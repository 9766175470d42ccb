"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel, Mixer
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.span import Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.blocks import weighted_sum
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.families.blocks import mixing_kernel
from merge_models.merge.strategies.families.task_vectors import Terms, term_kernel
from merge_models.merge.strategies.families.weights import NOT_DIVIDED, divisor_of, is_zero_sum

_STEEP = 2.0**20
"""Scales that add up to more are multiplied with differences: the rounding of a model times its scale would
show beside the base, which float32 and float64 sums of less never let it."""


@dataclass(frozen=True)
class TaskArithmetic(AbstractStrategy):
    """``base + lambda * sum_i w_i (x_i - base)``; a negative weight takes a skill away.

    Kernel: linear. Carrier: flat space about the base. Source: Ilharco et al. 2023, "Editing models with
    task arithmetic" (2212.04089).
    """

    name: ClassVar[str] = "task_arithmetic"
    source: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their sum")
    normalize: bool = parameter(False, "divide the weights by their sum")

    @property
    def remark(self) -> str:
        return NOT_DIVIDED if self.normalize and is_zero_sum(self._weights) else ""

    def kernel(self, case: Case) -> Kernel:
        """Makes a kernel of the sum of models and base by their coefficients, rounded once; of differences
        where that is not exact enough."""
        scales = self._scales()
        if math.fsum(map(abs, scales)) > _STEEP:
            return term_kernel(case, partial(_differences, scales), makes_copies=False)
        base = math.fsum([1.0, *[-scale for scale in scales]])
        return mixing_kernel(case, partial(_sum, (*scales, base)), makes_copies=False)

    def _scales(self) -> tuple[float, ...]:
        divisor = divisor_of(self._weights) if self.normalize else 1.0
        return tuple(self.lambda_ * (weight / divisor) for weight in self._weights)

    @property
    def _weights(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return self.weight


def _sum(weights: tuple[float, ...], block: Block, survey: None) -> Mixer:
    del survey

    def mix(out: Span) -> int:
        return weighted_sum([span.first(out.count) for span in (*block.spans, block.origin)], weights, out)

    return mix


def _differences(scales: tuple[float, ...], block: Block, survey: None) -> Terms:
    del block, survey
    return [Thinned()] * len(scales), Mixing(Rule.SUM, scales)
