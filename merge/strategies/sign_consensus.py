"""Sums of thinned task vectors, with or without a vote on each element's sign: what TIES' kin share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from merge_models.merge.kernels.task_vectors import norms
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.base import (
    NOT_DIVIDED,
    AbstractTermStrategy,
    BaseModel,
    Block,
    divisor_of,
    is_zero_sum,
)
from merge_models.merge.strategies.parameters import parameter


@dataclass(frozen=True)
class AbstractTaskVectors(AbstractTermStrategy):
    """``base + lambda * sum_i w_i t_i`` of task vectors ``t_i`` that a subclass thins out.

    With ``elects``, an element's sum takes the parents whose ``w_i t_i`` has the sign of the whole sum there
    (a sum of zero counts as positive), and ``normalize`` divides it by the weights of those. Products and
    sums are float64, rounded once; a sign is not decided by rounding noise, so neither is it by the order
    of the parents.
    """

    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    elects: ClassVar[bool]

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their sum")
    normalize: bool = parameter(False, "divide the sum by the weights of the parents in it")

    @property
    def remark(self) -> str:
        divides = self.normalize and not self.elects
        return NOT_DIVIDED if divides and is_zero_sum(self.weights) else ""

    @property
    def weights(self) -> tuple[float, ...]:
        """The parents' weights, of a resolved strategy."""
        assert isinstance(self.weight, tuple)
        return self.weight

    @property
    def mixing(self) -> Mixing:
        """How what is left of the task vectors becomes one."""
        whole = divisor_of(self.weights) if self.normalize and not self.elects else 1.0
        return Mixing(
            Rule.ELECT if self.elects else Rule.SUM,
            self.weights,
            self.weights,
            normalize=self.normalize and self.elects,
            scale=self.lambda_ / whole,
        )


def norms_of(block: Block, thinned: Sequence[Thinned]) -> np.ndarray:
    """L1 norms of each parent's task vector, whole and thinned: float64 ``[2, N]``; NaN and Inf left out."""
    assert block.base_span is not None
    return norms(block.spans, block.base_span, thinned)


def ratios(sums: np.ndarray) -> tuple[float, ...]:
    """What gives thinned task vectors their L1 norm back; 1 where nothing was left to scale."""
    whole, thinned = sums.tolist()
    return tuple(a / b if b > 0 else 1.0 for a, b in zip(whole, thinned, strict=True))
