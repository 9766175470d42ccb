"""What strategies on a sphere share: weights, where its centre is, degenerate cases, sums that are exact.

Every tensor (or row) is a point x_i. Its direction ``x_i / |x_i|`` lies on the unit sphere, and is merged
there; the merged direction is then as long as the weighted mean of the norms.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families import near_points
from merge_models.merge.strategies.families.near_gram import NearGram
from merge_models.merge.strategies.families.near_points import NearPoints
from merge_models.merge.strategies.families.span import FixedMixture, Mixture, row_kernel, span_kernel
from merge_models.merge.strategies.families.weights import base_under_origin, shares_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models import manifolds
    from merge_models.manifolds import Gram
else:
    torch = LazyModule("torch")
    manifolds = LazyModule("merge_models.manifolds")

NEGLIGIBLE = 1e-6
"""A sum of unit vectors (or of points, against their mean norm) below this has no direction worth following;
two points within this angle of opposite have no arc."""

_ROUNDING = 64 * 2.0**-52

EQUAL_TO_BASE = "equal to the base"
"""What a model is whose difference from the base is zero."""


@dataclass(frozen=True)
class Points:
    """N points by their directions.

    Attributes:
        units: ``[..., N, K]``, in coordinates with the geometry of the tensors; zero where a point is zero.
        norms: ``[..., N]``.
        shares: weights ``[..., N]`` that sum to 1.
        measured: ``[...]``, whether all points are finite.
        zero: what a model is whose point is zero, in words.
    """

    units: Tensor
    norms: Tensor
    shares: Tensor
    measured: Tensor
    zero: str

    @staticmethod
    def of(gram: Gram, shares: tuple[float, ...], zero: str = "zero") -> Points:
        """Returns points from their Gram data.

        Where those are not finite (a parent holds NaN or Inf) all points count as zero, so that one bad
        value does not become a bad tensor.
        """
        measured = _measured(gram)
        units, norms = manifolds.directions(manifolds.embed(_finite(gram, measured)).points)
        spread = torch.tensor(shares, dtype=torch.float64).expand(norms.shape)
        return Points(units, norms, spread, measured, zero)

    @property
    def pulling(self) -> Tensor:
        """Shares without those of zero points, which have no direction."""
        return torch.where(self.norms > 0, self.shares, torch.zeros_like(self.shares))

    @property
    def mean_norm(self) -> Tensor:
        """Weighted mean of the norms ``[...]``."""
        return (self.shares * self.norms).sum(-1)

    def faces(self, mean: Tensor) -> Tensor:
        """Returns whether ``[...]`` any point pulls, and one shortest arc leads to each that does from
        ``mean``."""
        pulls = self.pulling > 0
        opposite = manifolds.angle_between(mean.unsqueeze(-2), self.units) > math.pi - NEGLIGIBLE
        return pulls.any(-1) & ~(opposite & pulls).any(-1)

    @property
    def vanish(self) -> Tensor:
        """Whether ``[...]`` every point that has a weight is zero, and with them any mean of them."""
        return self.measured & ~(self.pulling > 0).any(-1)

    def reason(self, defined: Tensor) -> Figures:
        """Returns why a tensor has no mean direction, in words; nothing where it has one, and for batches."""
        if defined.ndim or bool(defined):
            return {}
        if not bool(self.measured):
            return {"reason": "a model holds NaN or Inf"}
        if bool(self.vanish):
            return {"reason": f"every model is {self.zero}"}
        return {"reason": "opposite models have no mean direction: their linear mean"}

    def over_points(self, coefficients: Tensor) -> Tensor:
        """Returns coefficients of the units as coefficients of the points."""
        return coefficients / torch.where(self.norms > 0, self.norms, torch.ones_like(self.norms))


def _measured(gram: Gram) -> Tensor:
    finite = torch.isfinite(gram.reference) & torch.isfinite(gram.differences).all(-1).all(-1)
    return finite & torch.isfinite(gram.cross).all(-1)


def _finite(gram: Gram, finite: Tensor) -> Gram:
    if bool(finite.all()):
        return gram
    kept = [
        torch.where(finite[(...,) + (None,) * extra], field, torch.zeros_like(field))
        for extra, field in enumerate((gram.reference, gram.cross, gram.differences))
    ]
    return manifolds.Gram(*kept)


def closed(coefficients: Tensor, shares: Tensor) -> Tensor:
    """Returns coefficients ``[..., N]`` that sum to 1 but for rounding, made to do so; others as they are.

    Equal parents then come back equal, and a lone one bit for bit.
    """
    gap = 1 - coefficients.sum(-1, keepdim=True)
    return torch.where(gap.abs() <= _ROUNDING, coefficients + gap * shares, coefficients)


def about_base(mixture: Mixture) -> Mixture:
    """Returns a mixture of differences from the base, as one of the parents and the base."""
    rest = 1 - mixture.parents.sum(-1)
    rest = torch.where(rest.abs() <= _ROUNDING, torch.zeros_like(rest), rest)
    return dataclasses.replace(mixture, base=rest)


def arc_mixture(gram: Gram, t: float, zero: str = "zero") -> Mixture:
    """Returns SLERP's coefficients at ``t``, for two points as they are.

    Those of the straight line where there is no arc: a point is zero, or they are opposite.
    """
    points = Points.of(gram, (1 - t, t), zero)
    angle = manifolds.angle_between(points.units[..., 0, :], points.units[..., 1, :])
    arc = (points.norms > 0).all(-1) & (angle < math.pi - NEGLIGIBLE)
    angle = torch.where((points.norms > 0).all(-1), angle, torch.zeros_like(angle))
    coefficients = manifolds.slerp_coefficients(torch.where(arc, angle, torch.zeros_like(angle)), t)
    figures = _arc_figures(points, angle, arc) if angle.ndim == 0 else {}
    return Mixture(closed(coefficients, points.shares), figures=figures)


def _arc_figures(points: Points, angle: Tensor, arc: Tensor) -> Figures:
    """From zero to zero every way is the arc."""
    still = points.measured & ~(points.norms > 0).any(-1)
    figures: Figures = {"angle": float(angle), "arc": bool(arc | still)}
    if bool(arc):
        return figures
    if bool(still) or not bool(points.measured):
        return {**figures, **points.reason(arc)}
    which = "opposite models" if bool((points.norms > 0).all()) else f"a model that is {points.zero}"
    return {**figures, "reason": f"no arc with {which}: the straight line"}


def quick_arc(gram: NearGram, t: float) -> FixedMixture | None:
    """Returns :func:`arc_mixture` of near points."""
    points = NearPoints.of(gram, (1 - t, t))
    return None if points is None else near_points.arc(points, t)


@dataclass(frozen=True)
class AbstractSphericalStrategy(AbstractStrategy):
    """A weighted mean of directions (``direction``), as long as the weighted mean of the norms.

    A zero point (a parent equal to the base, under ``origin: base``) has no direction; it counts in the mean
    norm. Where no direction comes out at all (opposite parents, zero ones) the result is the weighted mean
    of the points.
    """

    carrier: ClassVar[str] = "sphere"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    per: str = parameter("tensor", "what is one point of the sphere", choices=("tensor", "row"))
    origin: str = parameter(
        "zero", "the sphere's centre: zero, or the base model's tensor", choices=("zero", "base")
    )

    @classmethod
    def base_for(cls, parameters: Mapping[str, Any]) -> BaseModel:
        return base_under_origin(parameters)

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    def kernel(self, case: Case) -> Kernel:
        """Makes a kernel of one point per tensor, or per row."""
        if self.per == "row":
            return row_kernel(case, self.mixture)
        return span_kernel(case, self.mixture, self.quick)

    def mixture(self, gram: Gram, has_base: bool = False) -> Mixture:
        """Returns coefficients of the points, about zero or about the base."""
        shares = shares_of(self.weight)
        if has_base:
            return about_base(self._mixture(Points.of(gram.about_reference(), shares, EQUAL_TO_BASE)))
        return self._mixture(Points.of(gram, shares))

    def _mixture(self, points: Points) -> Mixture:
        direction, defined, figures = self.direction(points)
        coefficients = points.mean_norm.unsqueeze(-1) * direction
        coefficients = torch.where(defined.unsqueeze(-1), coefficients, points.shares)
        return Mixture(closed(coefficients, points.shares), figures={**figures, **points.reason(defined)})

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        """Returns ``mixture`` of one tensor without torch, where nothing is degenerate."""
        points = NearPoints.of(gram.about_reference() if has_base else gram, shares_of(self.weight))
        mixture = None if points is None else self.quick_mean(points)
        return near_points.about_base(mixture) if mixture is not None and has_base else mixture

    def quick_mean(self, points: NearPoints) -> FixedMixture | None:
        """Returns ``direction`` at its length, for near points; None where it is not so simple."""
        del points
        return None

    @abc.abstractmethod
    def direction(self, points: Points) -> tuple[Tensor, Tensor, Figures]:
        """Returns the merged direction.

        Returns:
            Coefficients of the points ``[..., N]`` that give a vector of norm 1, where ``[...]`` there is
            one, and what is worth telling (for one tensor; nothing for a batch of rows).
        """
