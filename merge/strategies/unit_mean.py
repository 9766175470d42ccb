"""Unit mean: the normalised mean of unit vectors, the first control of the Karcher mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from merge_models.merge.contract.kernel import Figures
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.near_points import NearPoints
from merge_models.merge.strategies.families.span import FixedMixture
from merge_models.merge.strategies.families.spherical import NEGLIGIBLE, AbstractSphericalStrategy, Points

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class UnitMean(AbstractSphericalStrategy):
    """Averages unit vectors and scales the sum to the mean norm: the Karcher mean before any step.

    ``n * s / |s|`` with ``s = sum_i w_i x_i / |x_i|`` and n the weighted mean norm.

    Kernel: linear, then projected. Carrier: the unit sphere of each tensor or row, about zero or about the
    base (chordal mean). Source: the starting point of Karcher iterations; control for `karcher` in this
    project.

    It is the Karcher mean where two parents weigh the same and where all angles between parents are equal.
    Elsewhere it differs in the third order of the angles: for N parents of one base with ``r = |delta| /
    |base|`` by 3e-7 rad at r = 0.02, 4e-5 at 0.1, 3e-3 at 0.5. A Karcher mean that is better must be better
    than this. mergekit's ``multislerp``, and its ``karcher`` in bfloat16, compute this. Where the sum
    vanishes the result is the linear mean.
    """

    name: ClassVar[str] = "unit_mean"
    source: ClassVar[str] = "control for karcher"

    def quick_mean(self, points: NearPoints) -> FixedMixture:
        length = float(np.linalg.norm(points.shares @ points.units))
        return points.mixture(points.shares / length, {"length": length})

    def direction(self, points: Points) -> tuple[Tensor, Tensor, Figures]:
        pulling = points.pulling
        length = (pulling.unsqueeze(-1) * points.units).sum(-2).norm(dim=-1)
        defined = length > NEGLIGIBLE * pulling.sum(-1)
        coefficients = pulling / torch.where(defined, length, torch.ones_like(length)).unsqueeze(-1)
        figures: Figures = {"length": float(length)} if length.ndim == 0 and bool(pulling.any()) else {}
        return points.over_points(coefficients), defined, figures
