"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.strategies.base import (
    AbstractSpanStrategy,
    BaseModel,
    FixedMixture,
    normalised,
)
from merge_models.merge.strategies.parameters import parameter

if TYPE_CHECKING:
    from merge_models.manifolds.span import Gram


@dataclass(frozen=True)
class TaskArithmetic(AbstractSpanStrategy):
    """``base + lambda * sum_i w_i (x_i - base)``; a negative weight takes a skill away.

    Kernel: linear. Carrier: flat space about the base. Source: Ilharco et al. 2023, "Editing models with
    task arithmetic" (2212.04089).
    """

    name: ClassVar[str] = "task_arithmetic"
    source: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    ignored: ClassVar[tuple[str, ...]] = ("density", "rescale", "int8_mask")

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their sum")
    normalize: bool = parameter(False, "divide the weights by their sum")

    @property
    def needs_gram(self) -> bool:
        return False

    def validate(self, count: int) -> None:
        self._scales()

    def mixture(self, gram: Gram | None) -> FixedMixture:
        del gram
        scales = self._scales()
        base = math.fsum([1.0, *[-scale for scale in scales]])
        return FixedMixture(scales, base)

    def _scales(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        weights = normalised(self.weight) if self.normalize else self.weight
        return tuple(self.lambda_ * weight for weight in weights)
