"""Log-linear pooling: the weighted geometric mean of magnitudes under elected signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.mixing import pieces
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.blocks import torch_kernel
from merge_models.merge.strategies.families.votes import ROUNDING, sign_of_sum
from merge_models.merge.strategies.families.weights import base_under_origin, shares_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

_FLOOR = 1e-290


@dataclass(frozen=True)
class LogLinear(AbstractStrategy):
    """Takes the geometric mean of magnitudes, under the sign that most weight votes for.

    Per element ``exp(sum_i w_i log |x_i|)`` with the sign of ``sum_i w_i sign(x_i)``.

    Kernel: log-linear (product). Carrier: magnitudes on a log scale, of the models or, under ``origin:
    base``, of their task vectors. Source: Genest & Zidek 1986, "Combining probability distributions"
    (logarithmic pooling of densities, here of magnitudes); signs elected as in TIES (2306.01708), but by
    weight and not by mass.

    All parents lend their magnitude, whatever their sign. A tie of votes goes to the sign of ``sum_i w_i
    x_i``, and to 0 where that vanishes too. A product has a veto: one parent of positive weight at zero
    makes the element zero (the base's value under ``origin: base``), so only what all parents hold survives.
    ``zeros: skip`` leaves zeros out instead and divides by the weight of the others. No other tool has this
    method.
    """

    name: ClassVar[str] = "log_linear"
    carrier: ClassVar[str] = "spd"
    source: ClassVar[str] = "Genest & Zidek 1986, doi:10.1214/ss/1177013825"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    origin: str = parameter("zero", "pool values, or differences from the base", choices=("zero", "base"))
    zeros: str = parameter("veto", "what a zero does to the mean", choices=("veto", "skip"))

    @classmethod
    def base_for(cls, parameters: Mapping[str, Any]) -> BaseModel:
        return base_under_origin(parameters)

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    def kernel(self, case: Case) -> Kernel:
        return torch_kernel(case, self._combine)

    def _combine(self, block: Block, survey: None) -> Tensor:
        del survey
        shares = shares_of(self.weight)
        used = [(share, x) for share, x in zip(shares, block.stored, strict=True) if share > 0]
        base = block.stored_base
        doubled = any(x.dtype == torch.float64 for _, x in used)
        merged = torch.empty(used[0][1].shape, dtype=torch.float64 if doubled else torch.float32)
        for place in pieces(merged):
            points = [(share, x[place].to(merged.dtype)) for share, x in used]
            merged[place] = self._pool(points, None if base is None else base[place].to(merged.dtype))
        return merged

    def _pool(self, points: Sequence[tuple[float, Tensor]], base: Tensor | None) -> Tensor:
        first = points[0][1]
        vote, logs, weight = (torch.zeros_like(first, dtype=torch.float64) for _ in range(3))
        alive, equal = torch.ones_like(first), torch.ones_like(first, dtype=torch.bool)
        offsets = [(share, x if base is None else x - base) for share, x in points]
        for (share, offset), (_, x) in zip(offsets, points, strict=True):
            sign = offset.sign()
            vote.add_(sign, alpha=share)
            present = sign.square_()
            # Logarithms of zero are slow, and what they would do is done by `present`.
            log = offset.abs().double().clamp_min_(_FLOOR).log_()
            if self.zeros == "skip":
                weight.add_(present, alpha=share)
                logs.add_(log.mul_(present), alpha=share)
            else:
                alive.mul_(present)
                logs.add_(log, alpha=share)
            equal &= x == first
        if self.zeros == "skip":
            logs /= weight.clamp_min_(_FLOOR)
        tied = vote.abs() <= ROUNDING
        if bool(tied.any()):
            vote = torch.where(tied, sign_of_sum(offsets), vote)
        merged = logs.exp_().mul_(vote.sign_()).mul_(alive)
        if base is not None:
            merged += base
        # Logarithms round; parents that agree need none.
        return torch.where(equal, first, merged.to(first.dtype))
