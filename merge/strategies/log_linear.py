"""Log-linear pooling: the weighted geometric mean of magnitudes under elected signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.merge.strategies.base import AbstractStrategy, BaseModel, Block
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.spherical import base_under, shares_of

_TIE = 1e-12


@dataclass(frozen=True)
class LogLinear(AbstractStrategy):
    """Per element: the sign that most weight votes for, and the geometric mean ``exp(sum_i w_i log |x_i|)``.

    Kernel: log-linear (product). Carrier: magnitudes on a log scale, of the models or, under ``origin: base``, of
    their task vectors. Source: Genest & Zidek 1986, "Combining probability distributions" (logarithmic pooling of
    densities, here of magnitudes); signs elected as in TIES (2306.01708), but by weight and not by mass.

    All parents lend their magnitude, whatever their sign. A tie of votes goes to the sign of ``sum_i w_i x_i``, and to
    0 where that vanishes too. A product has a veto: one parent of positive weight at zero makes the element zero
    (the base's value under ``origin: base``), so only what all parents hold survives. ``zeros: skip`` leaves zeros
    out instead and divides by the weight of the others. No other tool has this method.
    """

    name: ClassVar[str] = "log_linear"
    carrier: ClassVar[str] = "log magnitudes"
    source: ClassVar[str] = "Genest & Zidek 1986, doi:10.1214/ss/1177013825"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    origin: str = parameter("zero", "pool values, or differences from the base", choices=("zero", "base"))
    zeros: str = parameter("veto", "what a zero does to the mean", choices=("veto", "skip"))

    @classmethod
    def base_for(cls, parameters: Mapping[str, Any]) -> BaseModel:
        return base_under(parameters.get("origin", "zero"))

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    def combine(self, block: Block, survey: Any) -> Tensor:
        del survey
        used = [(w, x) for w, x in zip(shares_of(self.weight), block.parents, strict=True) if w > 0]
        first = used[0][1]
        vote, total, logs, weight = (torch.zeros_like(first, dtype=torch.float64) for _ in range(4))
        equal = torch.ones_like(first, dtype=torch.bool)
        for share, parent in used:
            point = parent.double() if block.base is None else parent.double() - block.base
            vote.add_(point.sign(), alpha=share)
            total.add_(point, alpha=share)
            log = point.abs_() if block.base is not None else point.abs()
            if self.zeros == "skip":
                weight.add_(log > 0, alpha=share)
                log.masked_fill_(log == 0, 1.0)
            logs.add_(log.log_(), alpha=share)
            equal &= parent == first
        if self.zeros == "skip":
            logs /= torch.where(weight > 0, weight, torch.ones_like(weight))
        sign = torch.where(vote.abs() > _TIE, vote, total).sign_()
        merged = logs.exp_().mul_(sign)
        if block.base is not None:
            merged += block.base
        # Logarithms round; parents that agree need none.
        return torch.where(equal, first, merged.to(first.dtype))
