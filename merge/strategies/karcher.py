"""Karcher mean: the mean on the sphere, to machine precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.contract.kernel import Figures
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families import near_points
from merge_models.merge.strategies.families.near_points import NearPoints
from merge_models.merge.strategies.families.span import FixedMixture
from merge_models.merge.strategies.families.spherical import AbstractSphericalStrategy, Points

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models import manifolds
else:
    torch = LazyModule("torch")
    manifolds = LazyModule("merge_models.manifolds")


@dataclass(frozen=True)
class Karcher(AbstractSphericalStrategy):
    """Averages the directions of tensors (or rows) on the sphere, exactly, and scales by their mean norm.

    Kernel: linear in the tangent space of the mean, ``sum_i w_i log_m(u_i) = 0``. Carrier: the unit sphere
    of each tensor or row, about zero or about the base; this sphere is the proxy that the paper takes for
    the Fisher-Rao metric. Source: Wang, Ye, Yin 2026, "Functionality-oriented LLM merging on the Fisher-Rao
    manifold" (2603.04972).

    Solved to a relative residual of ``tol`` (1e-12), in one or two Newton steps on the parents' Gram matrix.
    Siblings that are about equally far apart have their mean close to ``unit_mean``: compare with it. Where
    a parent is opposite to the mean of the others no single mean exists, and the result is the linear mean
    (``converged: false``). The mean of zeros is zero.

    mergekit's karcher has no weights, takes at most 10 plain steps to an absolute 1e-5, and works in the
    dtype of the recipe: in bfloat16 the angles between siblings round to 0 and it returns ``unit_mean``. Its
    ``max_iter`` and ``tol`` are accepted; ``tol`` here is relative to the spread of the parents.
    """

    name: ClassVar[str] = "karcher"
    aliases: ClassVar[tuple[str, ...]] = ("fisher_rao",)
    source: ClassVar[str] = "Wang, Ye, Yin 2026, arXiv:2603.04972"

    max_iter: int = parameter(200, "steps at most", minimum=0)
    tol: float = parameter(1e-12, "stop at this residual, relative to the parents' spread", minimum=0)

    def quick_mean(self, points: NearPoints) -> FixedMixture | None:
        return near_points.karcher(points, self.tol, self.max_iter)

    def direction(self, points: Points) -> tuple[Tensor, Tensor, Figures]:
        from merge_models.manifolds.frechet import frechet_mean
        from merge_models.manifolds.unit_sphere import UnitSphere

        pulling = points.pulling
        units = torch.where((pulling > 0).unsqueeze(-1), points.units, torch.zeros_like(points.units))
        mean = frechet_mean(UnitSphere(), units, pulling, tolerance=self.tol, max_iterations=self.max_iter)
        defined = points.faces(mean.point)
        figures: Figures = {}
        if defined.ndim == 0:
            figures = {
                "residual": float(mean.residual),
                "iterations": int(mean.iterations),
                "converged": bool(mean.converged & (defined | points.vanish)),
                "unique": bool(mean.unique),
                "largest_angle": _largest_angle(units, pulling),
            }
        return points.over_points(manifolds.mean_coefficients(units, mean.point, pulling)), defined, figures


def _largest_angle(units: Tensor, pulling: Tensor) -> float:
    """The largest angle between two parents that pull."""
    units = units[pulling > 0]
    return float(manifolds.angle_between(units.unsqueeze(0), units.unsqueeze(1)).max()) if len(units) else 0.0
