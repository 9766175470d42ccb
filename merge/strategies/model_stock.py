"""Model Stock: the mean of the models, drawn to the base by how little they agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.near_gram import NearGram
from merge_models.merge.strategies.families.span import FixedMixture, Mixture, row_kernel, span_kernel
from merge_models.merge.strategies.families.spherical import EQUAL_TO_BASE, Points

if TYPE_CHECKING:
    import torch

    from merge_models.manifolds import Gram
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class ModelStock(AbstractStrategy):
    """Draws the mean of the models to the base, the more the less their task vectors agree.

    ``t * mean + (1 - t) * base`` with ``t = N c / (1 + (N-1) c)``, c the mean pairwise cosine.

    Kernel: linear. Carrier: flat about the base, with the angles of the sphere; per tensor, or per row with
    ``filter_wise``. Source: Jang, Yun, Han 2024, "Model Stock" (2403.19522).

    c is clamped to [0, 1], and so t: task vectors that point away from each other (c <= 0) give the base,
    and so do parents equal to it, whose cosines count as 0. mergekit lets t become negative for c < 0, takes
    norms below an absolute 1e-6 for 1e-6, and computes in the recipe's dtype. Needs two models besides the
    base.
    """

    name: ClassVar[str] = "model_stock"
    source: ClassVar[str] = "Jang, Yun, Han 2024, arXiv:2403.19522"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    parents: ClassVar[tuple[int, int | None]] = (2, None)

    filter_wise: bool = parameter(False, "one t per row (output) instead of one per tensor")

    def kernel(self, case: Case) -> Kernel:
        """Makes a kernel of one point per tensor, or per row with ``filter_wise``."""
        if self.filter_wise:
            return row_kernel(case, self.mixture)
        return span_kernel(case, self.mixture, self.quick)

    def mixture(self, gram: Gram, has_base: bool = True) -> Mixture:
        """Returns coefficients of the models and the base."""
        del has_base
        count = gram.cross.shape[-1]
        points = Points.of(gram.about_reference(), (1 / count,) * count, EQUAL_TO_BASE)
        # Points that could not be measured (NaN) are averaged, so that the loop finds them in the result.
        cosine = torch.where(points.measured, _mean_cosine(points), 1.0)
        agreed = cosine.clamp(0, 1)
        t = count * agreed / (1 + (count - 1) * agreed)
        # Said without cancellation, so that parents which all agree leave exactly nothing to the base.
        rest = (1 - agreed) / (1 + (count - 1) * agreed)
        figures: Figures = {}
        if t.ndim == 0:
            figures = points.reason(~points.vanish) or {"cosine": float(cosine), "t": float(t)}
        return Mixture(t.unsqueeze(-1) * points.shares, rest, figures)

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        """Returns ``mixture`` of one tensor without torch, where nothing is degenerate."""
        del has_base
        own = np.diagonal(gram.differences)
        if not (np.isfinite(gram.differences).all() and (own > 0).all()):
            return None
        count = len(own)
        first, second = np.triu_indices(count, 1)
        cosine = float((gram.differences[first, second] / np.sqrt(own[first] * own[second])).mean())
        agreed = min(max(cosine, 0.0), 1.0)
        t, rest = count * agreed / (1 + (count - 1) * agreed), (1 - agreed) / (1 + (count - 1) * agreed)
        return FixedMixture((t / count,) * count, rest, {"cosine": cosine, "t": t})


def _mean_cosine(points: Points) -> torch.Tensor:
    """Mean cosine over pairs of points, those of zero points being 0; from chords, so that 1 is exact."""
    first, second = torch.triu_indices(*[points.units.shape[-2]] * 2, offset=1)
    chords = points.units[..., first, :] - points.units[..., second, :]
    both = (points.norms[..., first] > 0) & (points.norms[..., second] > 0)
    cosines = 1 - chords.square().sum(-1) / 2
    return torch.where(both, cosines, torch.zeros_like(cosines)).mean(-1)
