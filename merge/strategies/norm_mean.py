"""Norm mean: the linear mean brought back to the mean norm, the second control of the Karcher mean."""

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
class NormMean(AbstractSphericalStrategy):
    """Averages the models and scales the result to the weighted mean of their norms.

    ``m * (sum_i w_i |x_i|) / |m|`` with ``m = sum_i w_i x_i``.

    Kernel: linear, then rescaled. Carrier: flat, with the norm of the sphere; per tensor or row, about zero
    or about the base. Source: the norm-rescaled average, control for `karcher` in this project; mergekit has
    none.

    For parents of equal norms it is ``unit_mean``; longer parents pull more here. Against zero and for
    siblings of one base the factor is close to 1 (1.0002 for deltas of 2 % of the base); against the base it
    undoes the ``1 / sqrt N`` by which averaging shrinks unrelated deltas. Where the sum vanishes the result
    is the linear mean.
    """

    name: ClassVar[str] = "norm_mean"
    source: ClassVar[str] = "control for karcher"

    def quick_mean(self, points: NearPoints) -> FixedMixture:
        length = float(np.linalg.norm((points.shares * points.norms) @ points.units))
        rescaled = points.mean_norm / length
        return points.closed(rescaled * points.shares, {"rescaled": rescaled})

    def direction(self, points: Points) -> tuple[Tensor, Tensor, Figures]:
        summed = ((points.shares * points.norms).unsqueeze(-1) * points.units).sum(-2)
        length, mean_norm = summed.norm(dim=-1), points.mean_norm
        defined = length > NEGLIGIBLE * mean_norm
        safe = torch.where(defined, length, torch.ones_like(length))
        figures: Figures = {}
        if length.ndim == 0:
            figures = {"rescaled": float(mean_norm / safe) if bool(defined) else 1.0}
        return points.shares / safe.unsqueeze(-1), defined, figures
