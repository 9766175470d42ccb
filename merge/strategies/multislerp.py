"""MultiSLERP: one step of the log map at the mean of the directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families import near_points
from merge_models.merge.strategies.families.near_gram import NearGram
from merge_models.merge.strategies.families.near_points import NearPoints
from merge_models.merge.strategies.families.span import FixedMixture, Mixture, span_kernel
from merge_models.merge.strategies.families.spherical import Points, about_base, closed
from merge_models.merge.strategies.families.weights import shares_of

if TYPE_CHECKING:
    import torch

    from merge_models import manifolds
    from merge_models.manifolds import Gram
else:
    torch = LazyModule("torch")
    manifolds = LazyModule("merge_models.manifolds")


@dataclass(frozen=True)
class MultiSlerp(AbstractStrategy):
    """Averages directions by one step of the log map at their mean, and scales by the weighted norm.

    ``m = s / |s|`` with ``s = sum_i w_i u_i``, then ``exp_m(sum_i w_i log_m(u_i)) * sum_i w_i |x_i|``; with
    a base, of the task vectors, added to the base. Kernel: linear in one tangent space. Carrier: the sphere
    of each tensor, about zero or about the base. Source: mergekit's multislerp, as it
    is described; Buss & Fillmore 2001, "Spherical averages". Repeated to the end this is `karcher`.

    mergekit projects ``u_i - <u_i, m> m`` where the log map belongs. Those projections sum to zero for every
    choice of parents and weights, so its step is identically zero and its result is `unit_mean`. Parameters
    are mergekit's, with weights not negative. Without ``normalize_weights`` the weights' sum scales the norm
    alone. Where ``|s|`` (of normalised weights) is below ``eps`` there is no mean direction and the result
    is the linear mean; mergekit stops there for more than two models.
    """

    name: ClassVar[str] = "multislerp"
    carrier: ClassVar[str] = "sphere"
    source: ClassVar[str] = "mergekit; Buss & Fillmore 2001, doi:10.1145/502122.502124"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    normalize_weights: bool = parameter(True, "divide the weights by their sum")
    eps: float = parameter(1e-8, "a shorter mean of unit vectors has no direction", above=0, below=1)

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    def kernel(self, case: Case) -> Kernel:
        return span_kernel(case, self.mixture, self.quick)

    def mixture(self, gram: Gram, has_base: bool = False) -> Mixture:
        """Returns coefficients of the points, about zero or about the base."""
        return about_base(self._mixture(gram.about_reference())) if has_base else self._mixture(gram)

    def _mixture(self, gram: Gram) -> Mixture:
        assert isinstance(self.weight, tuple)
        points = Points.of(gram, shares_of(self.weight))
        scale = 1.0 if self.normalize_weights else sum(self.weight)
        pulling = points.pulling
        pulling = pulling / torch.where(pulling.any(-1), pulling.sum(-1), 1.0).unsqueeze(-1)
        length = (pulling.unsqueeze(-1) * points.units).sum(-2).norm(dim=-1)
        defined = length > self.eps
        start = pulling / torch.where(defined, length, torch.ones_like(length)).unsqueeze(-1)
        defined &= points.faces((start.unsqueeze(-1) * points.units).sum(-2))
        direction = points.over_points(manifolds.step_coefficients(points.units, start, pulling))
        coefficients = points.mean_norm.unsqueeze(-1) * direction
        coefficients = torch.where(defined.unsqueeze(-1), coefficients, points.shares)
        return Mixture(scale * closed(coefficients, points.shares))

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        """Returns ``mixture`` of one tensor without torch, where nothing is degenerate."""
        assert isinstance(self.weight, tuple)
        points = NearPoints.of(gram.about_reference() if has_base else gram, shares_of(self.weight))
        if points is None:
            return None
        scale = 1.0 if self.normalize_weights else sum(self.weight)
        mixture = points.mixture(near_points.one_step(points))
        mixture = FixedMixture(tuple(scale * c for c in mixture.parents))
        return near_points.about_base(mixture) if has_base else mixture
