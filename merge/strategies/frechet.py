"""Fréchet: the mean of the models on any manifold, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from merge_models.manifolds import MANIFOLDS
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Grain, Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.errors import PlanError
from merge_models.merge.strategies.families.blocks import torch_kernel
from merge_models.merge.strategies.families.lifted_mean import LiftedMean, event_of, refusal
from merge_models.merge.strategies.families.span import FixedMixture, fixed_kernel
from merge_models.merge.strategies.families.weights import base_under_origin, shares_of


@dataclass(frozen=True)
class Frechet(AbstractStrategy):
    """Takes the Fréchet mean of tensors, rows or heads on a manifold that is chosen by its name.

    Raw numbers are taken apart into a point and a rest (on ``sphere`` direction and norm, on ``rotations``
    and ``stiefel`` the polar factors); ``sum_i w_i dist(m, x_i)^2`` is least at the merged point, and rests
    are averaged. ``simplex``, ``gaussians``, ``diagonal_gaussians`` and ``spd`` take only tensors that are
    points already; ``lorentz`` and ``poincare`` take any, put into hyperbolic space.

    Kernel: linear in the tangent space of the mean. Carrier: as named. Source: Fréchet 1948; Pennec 2006,
    "Intrinsic statistics on Riemannian manifolds".

    A tensor whose shape has no points on the manifold (a vector where points are matrices), values that are
    no point (zero on the sphere), and points without one mean are averaged; the plan tells of shapes. With
    ``otherwise: error`` they stop the merge. Whole tensors are held in memory in float64: on spheres
    `karcher` is the same mean at a fraction of the cost. No peer has this.
    """

    name: ClassVar[str] = "frechet"
    carrier: ClassVar[str] = ""
    source: ClassVar[str] = "Pennec 2006, doi:10.1007/s10851-006-6228-4"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    manifold: str = parameter("sphere", "where points lie", choices=tuple(MANIFOLDS))
    per: str = parameter("tensor", "what is one point", choices=("tensor", "row", "head"))
    heads: int = parameter(1, "runs of rows that are a head each, under per: head", minimum=1)
    origin: str = parameter("zero", "points are models, or their task vectors", choices=("zero", "base"))
    otherwise: str = parameter("linear", "what is done where there is no mean", choices=("linear", "error"))

    @classmethod
    def base_for(cls, parameters: Mapping[str, Any]) -> BaseModel:
        return base_under_origin(parameters)

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    def kernel(self, case: Case) -> Kernel:
        """Makes a kernel of whole rows, or of the whole tensor."""
        shares, reason = shares_of(self.weight), refusal(case, self.manifold, self.per, self.heads)
        if reason and self.otherwise == "error":
            raise PlanError(
                f"tensor '{case.shown_name}' {list(case.shape)}: on {self.manifold} {reason}; leave it out"
                " (only:), or set otherwise: linear"
            )
        if reason:
            return replace(fixed_kernel(case, FixedMixture(shares)), note=f"averaged: {reason}")
        event = event_of(case, self.manifold, self.per, self.heads)
        mean = LiftedMean(shares, self.manifold, event, self.otherwise == "linear", case.shown_name)
        return torch_kernel(case, mean.combine, grain=Grain.ROW if self.per == "row" else Grain.TENSOR)
