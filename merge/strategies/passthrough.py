"""Passthrough: one model's tensors as they are, or scaled; what stacks of layers are made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.strategies.families.span import FixedMixture, fixed_kernel


@dataclass(frozen=True)
class Passthrough(AbstractStrategy):
    """Takes one model's tensors as they are, times ``scale`` where one is given.

    Kernel: copy. Carrier: flat space. Frankenmerges are made with it: layers of several models stacked in
    slices, each from one model.
    """

    name: ClassVar[str] = "passthrough"
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    scale: float | None | tuple[float | None, ...] = parameter(
        None, "factor of the tensors; none leaves them as they are", kind=float, per_model=True
    )

    def kernel(self, case: Case) -> Kernel:
        assert isinstance(self.scale, tuple)
        (scale,) = self.scale
        return fixed_kernel(case, FixedMixture((1.0 if scale is None else scale,)))
