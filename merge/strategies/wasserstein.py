"""Wasserstein barycenter: the mean of the models, its rows given back the spread that averaging takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.merge.kernels.mixing import pieces
from merge_models.merge.strategies.base import (
    AbstractStrategy,
    BaseModel,
    Block,
    Figures,
    Grain,
    Moments,
    Pass,
    Survey,
    TensorSpec,
)
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.shares import base_under_origin, shares_of
from merge_models.merge.strategies.spherical import NEGLIGIBLE

MAX_COLUMNS = 1024
"""Wider tensors are pushed by columns under ``covariance: full`` too, which factors columns^2, many times."""

_ROUNDING = 1e-12
_LARGE_PIECE = 1 << 18


@dataclass(frozen=True)
class _Push:
    """What to add to the mean's rows: their distance from ``centre [columns]`` times ``stretch``, which is
    ``T - I`` for the optimal map T: ``[columns]`` if diagonal, else ``[columns, columns]``; None adds
    nothing."""

    centre: Tensor
    stretch: Tensor | None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Wasserstein(AbstractStrategy):
    """Averages the models and gives their rows back the spread that averaging takes.

    Kernel: linear, then an optimal map. Carrier: Gaussians with the Bures-Wasserstein metric; the rows of a
    parent's tensor are samples of one. Source: Agueh & Carlier 2011, "Barycenters in the Wasserstein space";
    the fixed point of Álvarez-Esteban et al. 2016 (1511.05355).

    Averaging N unrelated matrices leaves 1/N of the rows' covariance. The barycenter N(m, S) of the parents'
    Gaussians keeps it, and the averaged rows, of covariance C, are moved by the map that takes N(m, C) to
    N(m, S). With ``covariance: diagonal`` every column's deviation becomes the weighted mean of the parents'
    (what REPAIR, 2211.08403, does to activations). ``full`` restores covariances as well, to 1e-6 of the
    parents' spread, at a cost that grows as columns^3 (about half a minute of a core per tensor at 576
    columns); tensors of more than 1024 columns take the diagonal under it. Under ``origin: base`` rows of
    task vectors are pushed, of which averaging takes far more.

    Tensors of one dimension, and of one row, have no spread of rows: they are averaged. A column (a
    direction, for full) in which the mean of the rows' spread vanishes stays as it is, since there is
    nothing to stretch. No peer has this.
    """

    name: ClassVar[str] = "wasserstein"
    carrier: ClassVar[str] = "gaussians"
    source: ClassVar[str] = "Agueh & Carlier 2011, doi:10.1137/100805741"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    covariance: str = parameter("diagonal", "of the rows", choices=("diagonal", "full"))
    origin: str = parameter("zero", "rows of the models, or of their task vectors", choices=("zero", "base"))

    @classmethod
    def base_for(cls, parameters: Mapping[str, Any]) -> BaseModel:
        return base_under_origin(parameters)

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    @property
    def grain(self) -> Grain:
        return Grain.ROW

    def block_rows(self, spec: TensorSpec) -> int:
        return _width(spec) if self._is_full(spec) else 1

    def _is_full(self, spec: TensorSpec) -> bool:
        return self.covariance == "full" and _width(spec) <= MAX_COLUMNS

    def survey_bytes(self, spec: TensorSpec) -> int:
        assert isinstance(self.weight, tuple)
        columns = _width(spec)
        size = columns * columns if self._is_full(spec) else columns
        return 8 * size * 2 * (len(self.weight) + 4)

    def survey(self, spec: TensorSpec) -> Survey | None:
        """Moments of the rows of each parent that has weight, and of the mean's, which comes last."""
        return self._row_moments(spec) if spec.rows > 1 else None

    def _row_moments(self, spec: TensorSpec) -> Survey:
        sums, squares = yield Pass(self._columns)
        centres, squares = sums / spec.rows, squares / spec.rows
        # A variance is a difference of moments: what rounding may have left of nothing is nothing.
        variances = squares - centres.square()
        variances = torch.where(variances > _ROUNDING * squares, variances, 0.0)
        unmoved = all(torch.equal(variance, variances[-1]) for variance in variances)
        if unmoved or not bool(torch.isfinite(squares).all()):
            return _Push(centres[-1], None)
        shares = torch.tensor([w for w in shares_of(self.weight) if w > 0], dtype=torch.float64)
        if not self._is_full(spec):
            return _diagonal_push(centres[-1], variances, shares)
        (products,) = yield Pass(partial(self._products, centres=centres))
        return _full_push(centres[-1], products / spec.rows, shares)

    def _columns(self, block: Block) -> Moments:
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
        shares = shares_of(self.weight)
        return [(share, x) for share, x in zip(shares, block.stored, strict=True) if share > 0]

    def _mean(self, block: Block, place: slice) -> Tensor:
        """The weighted mean, as differences from the first parent: equal parents come back equal."""
        (_, first), *others = [(share, x[place].double()) for share, x in self._used(block)]
        mean = first.clone()
        for share, point in others:
            mean.add_(point - first, alpha=share)
        return mean

    def combine(self, block: Block, survey: Any) -> Tensor:
        """Averages the rows and pushes them."""
        merged = torch.empty(block.stored[0].shape, dtype=torch.float64)
        for place in pieces(merged):
            mean = self._mean(block, place)
            if isinstance(survey, _Push) and survey.stretch is not None:
                offset = mean - survey.centre
                if block.stored_base is not None:
                    offset -= block.stored_base[place]
                whole = survey.stretch.ndim == 2
                mean += offset @ survey.stretch if whole else offset * survey.stretch
            merged[place] = mean
        return merged

    def figures(self, spec: TensorSpec, survey: Any) -> Figures:
        del spec
        return survey.figures if isinstance(survey, _Push) else {}


def _diagonal_push(centre: Tensor, variances: Tensor, shares: Tensor) -> _Push:
    deviations = variances.sqrt()
    own, target = deviations[-1], shares @ deviations[:-1]
    spread = own > NEGLIGIBLE * target
    stretch = torch.where(spread, (target - own) / torch.where(spread, own, 1.0), 0.0)
    stretch = torch.where(stretch.abs() > _ROUNDING, stretch, 0.0)
    return _Push(centre, stretch if bool(stretch.any()) else None, _lost(own.square(), target.square()))


def _full_push(centre: Tensor, covariances: Tensor, shares: Tensor) -> _Push:
    # geoopt takes a while to import, so only merges that need it pay.
    from merge_models.manifolds.frechet import frechet_mean
    from merge_models.manifolds.gaussians import BuresWasserstein, optimal_map

    own = covariances[-1]
    found = frechet_mean(BuresWasserstein(), covariances[:-1], shares, tolerance=1e-6, max_iterations=50)
    stretch = optimal_map(own, found.point) - torch.eye(len(own), dtype=torch.float64)
    figures = _lost(own.diagonal(), found.point.diagonal())
    figures |= {"residual": float(found.residual), "converged": bool(found.converged)}
    return _Push(centre, stretch, figures)


def _lost(own: Tensor, target: Tensor) -> Figures:
    """What averaging took: how far the mean's rows spread, the barycenter's being 1, before the push."""
    whole = float(target.sum())
    return {"spread_of_mean": (float(own.sum()) / whole) ** 0.5 if whole > 0 else 1.0}


def _width(spec: TensorSpec) -> int:
    return spec.count // max(spec.rows, 1)
