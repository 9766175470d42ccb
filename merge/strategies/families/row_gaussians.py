"""Rows as samples of a Gaussian: the mean of models, with rows moved to spread as the parents' do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Figures, Moments, Pass, Survey
from merge_models.merge.kernels.mixing import pieces
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.spherical import NEGLIGIBLE

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

_ROUNDING = 1e-12
_LARGE_PIECE = 1 << 18


@dataclass(frozen=True)
class Push:
    """What to add to the mean's rows: their distance from ``centre`` times ``stretch``.

    Attributes:
        centre: ``[columns]``, the mean row.
        stretch: ``T - I`` for the optimal map T: ``[columns]`` if diagonal, else ``[columns, columns]``; None
            adds nothing.
        figures: what is worth telling.
    """

    centre: Tensor
    stretch: Tensor | None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class RowBarycenter:
    """Averages models and pushes the mean's rows to the barycenter of the parents' Gaussians.

    Attributes:
        shares: of the parents, summing to 1.
        rows: of the tensor.
        is_full: whether covariances are restored, or only each column's variance.
    """

    shares: tuple[float, ...]
    rows: int
    is_full: bool

    def survey(self, elements: int) -> Survey:
        """Takes moments of the rows of each parent that has weight, and of the mean's, which comes last."""
        del elements
        sums, squares = yield Pass(self._column_sums)
        centres, squares = sums / self.rows, squares / self.rows
        # A variance is a difference of moments: what rounding may have left of nothing is nothing.
        variances = squares - centres.square()
        variances = torch.where(variances > _ROUNDING * squares, variances, 0.0)
        unmoved = all(torch.equal(variance, variances[-1]) for variance in variances)
        if unmoved or not bool(torch.isfinite(squares).all()):
            return Push(centres[-1], None)
        shares = torch.tensor([w for w in self.shares if w > 0], dtype=torch.float64)
        if not self.is_full:
            return _diagonal_push(centres[-1], variances, shares)
        (products,) = yield Pass(self._products, (centres,))
        return _full_push(centres[-1], products / self.rows, shares)

    def _column_sums(self, block: Block) -> Moments:
        """Sums and sums of squares ``[N + 1, columns]``."""
        sums, squares = torch.zeros(2, len(self._used(block)) + 1, block.stored[0].shape[1]).double()
        for place in pieces(block.stored[0]):
            rows = self._rows(block, place)
            sums += rows.sum(1)
            squares += rows.square_().sum(1)
        return sums, squares

    def _products(self, block: Block, centres: Tensor) -> Moments:
        """Sums of products about the centres ``[N + 1, columns, columns]``."""
        products = torch.zeros(*centres.shape, centres.shape[-1], dtype=torch.float64)
        for place in pieces(block.stored[0], _LARGE_PIECE):
            rows = self._rows(block, place).sub_(centres.unsqueeze(1))
            products.baddbmm_(rows.mT, rows)
        return (products,)

    def _rows(self, block: Block, place: slice) -> Tensor:
        """Rows ``[N + 1, rows, columns]`` of the parents and of their mean, less those of the base."""
        rows = torch.stack([*(x[place].double() for _, x in self._used(block)), self._mean(block, place)])
        return rows if block.stored_base is None else rows.sub_(block.stored_base[place])

    def _used(self, block: Block) -> list[tuple[float, Tensor]]:
        return [(share, x) for share, x in zip(self.shares, block.stored, strict=True) if share > 0]

    def _mean(self, block: Block, place: slice) -> Tensor:
        """The weighted mean, as differences from the first parent: equal parents come back equal."""
        (_, first), *others = [(share, x[place].double()) for share, x in self._used(block)]
        mean = first.clone()
        for share, point in others:
            mean.add_(point - first, alpha=share)
        return mean

    def combine(self, block: Block, survey: Push | None) -> Tensor:
        """Averages the rows and pushes them."""
        merged = torch.empty(block.stored[0].shape, dtype=torch.float64)
        for place in pieces(merged):
            mean = self._mean(block, place)
            if survey is not None and survey.stretch is not None:
                offset = mean - survey.centre
                if block.stored_base is not None:
                    offset -= block.stored_base[place]
                whole = survey.stretch.ndim == 2
                mean += offset @ survey.stretch if whole else offset * survey.stretch
            merged[place] = mean
        return merged


def _diagonal_push(centre: Tensor, variances: Tensor, shares: Tensor) -> Push:
    deviations = variances.sqrt()
    own, target = deviations[-1], shares @ deviations[:-1]
    spread = own > NEGLIGIBLE * target
    stretch = torch.where(spread, (target - own) / torch.where(spread, own, 1.0), 0.0)
    stretch = torch.where(stretch.abs() > _ROUNDING, stretch, 0.0)
    return Push(centre, stretch if bool(stretch.any()) else None, _lost(own.square(), target.square()))


def _full_push(centre: Tensor, covariances: Tensor, shares: Tensor) -> Push:
    # geoopt takes a while to import, so only merges that need it pay.
    from merge_models.manifolds.frechet import frechet_mean
    from merge_models.manifolds.gaussians import BuresWasserstein, optimal_map

    own = covariances[-1]
    mean = frechet_mean(BuresWasserstein(), covariances[:-1], shares, tolerance=1e-6, max_iterations=50)
    stretch = optimal_map(own, mean.point) - torch.eye(len(own), dtype=torch.float64)
    figures = _lost(own.diagonal(), mean.point.diagonal())
    figures |= {"residual": float(mean.residual), "converged": bool(mean.converged)}
    return Push(centre, stretch, figures)


def _lost(own: Tensor, target: Tensor) -> Figures:
    """What averaging took: how far the mean's rows spread, the barycenter's being 1, before the push."""
    whole = float(target.sum())
    return {"spread_of_mean": (float(own.sum()) / whole) ** 0.5 if whole > 0 else 1.0}
