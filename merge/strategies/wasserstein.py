"""Wasserstein barycenter: the mean of the models, its rows given back the spread that averaging takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.merge.kernels.mixing import pieces, wide_dtype
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

MAX_COLUMNS = 4096
"""Wider tensors are pushed by columns under ``covariance: full`` too, which factors columns^2, many times."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class _Push:
    """What to add to the mean's rows: their distance from ``centre [columns]`` times ``stretch``, which is ``T - I``
    for the optimal map T: ``[columns]`` if diagonal, else ``[columns, columns]``; None adds nothing."""

    centre: Tensor
    stretch: Tensor | None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Wasserstein(AbstractStrategy):
    """Mean of the models, each tensor's rows pushed to the Wasserstein barycenter of the parents' row distributions.

    Kernel: linear, then an optimal map. Carrier: Gaussians with the Bures-Wasserstein metric; the rows of a parent's
    tensor are samples of one. Source: Agueh & Carlier 2011, "Barycenters in the Wasserstein space"; the fixed point of
    Álvarez-Esteban et al. 2016 (1511.05355).

    Averaging N unrelated matrices leaves 1/N of the rows' covariance. The barycenter N(m, S) of the parents' Gaussians
    keeps it, and the averaged rows, of covariance C, are moved by the map that takes N(m, C) to N(m, S). With
    ``covariance: diagonal`` every column's deviation becomes the weighted mean of the parents' (what REPAIR,
    2211.08403, does to activations); ``full`` restores covariances as well, at a cost that grows as columns^3: seconds
    per tensor at 576 columns, minutes at 2048, refused above 4096. Under ``origin: base`` rows of task vectors are
    pushed, where averaging takes far more.

    Tensors of one dimension, and of one row, have no spread of rows: they are averaged. A column (a direction, for full)
    in which the mean of the rows' spread vanishes stays as it is, since there is nothing to stretch. No peer has this.
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
        return _columns(spec) if self._is_full(spec) else 1

    def _is_full(self, spec: TensorSpec) -> bool:
        return self.covariance == "full" and _columns(spec) <= MAX_COLUMNS

    def survey_bytes(self, spec: TensorSpec) -> int:
        assert isinstance(self.weight, tuple)
        columns = _columns(spec)
        size = columns * columns if self._is_full(spec) else columns
        return 8 * size * 2 * (len(self.weight) + 4)

    def survey(self, spec: TensorSpec) -> Survey | None:
        """Sums and second moments of the parents' rows and of their mean's."""
        return self._row_moments(spec) if spec.rows > 1 else None

    def _row_moments(self, spec: TensorSpec) -> Survey:
        sums, seconds = yield Pass(self._measure)
        centres = sums / spec.rows
        if self._is_full(spec):
            outer = centres.unsqueeze(-1) * centres.unsqueeze(-2)
        else:
            outer = centres.square()
        covariances = seconds / spec.rows - outer
        return self._push(centres[-1], covariances[:-1], covariances[-1], seconds[-1] / spec.rows)

    def _measure(self, block: Block) -> Moments:
        """Of each parent that has weight, and of the mean last: the sum of rows, and of their squares or products."""
        full = self._is_full(block.spec)
        count, columns = len(self._used(block)) + 1, block.stored[0].shape[1]
        sums = torch.zeros(count, columns, dtype=torch.float64)
        seconds = torch.zeros((count, columns) + (columns,) * full, dtype=torch.float64)
        for place in pieces(block.stored[0], 1 << 18 if full else 1 << 15):
            rows = torch.stack([*(x[place].double() for _, x in self._used(block)), self._mean(block, place)])
            if block.stored_base is not None:
                rows -= block.stored_base[place]
            sums += rows.sum(1)
            if full:
                seconds.baddbmm_(rows.mT, rows)
            else:
                seconds += rows.square_().sum(1)
        return sums, seconds

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

    def _push(self, centre: Tensor, parents: Tensor, mean: Tensor, scale: Tensor) -> _Push:
        """The push for the covariances of the parents and of their mean; ``scale`` is the mean's second moment."""
        shares = torch.tensor([w for w in shares_of(self.weight) if w > 0], dtype=torch.float64)
        unmoved = all(torch.equal(covariance, mean) for covariance in parents)
        if unmoved or not bool(torch.isfinite(parents).all() & torch.isfinite(mean).all()):
            return _Push(centre, None)
        if mean.ndim == 2:
            return _full_push(centre, parents, mean, shares)
        return _diagonal_push(centre, parents, mean, shares, scale)

    def combine(self, block: Block, survey: Any) -> Tensor:
        """Averages the rows and pushes them."""
        merged = torch.empty(block.stored[0].shape, dtype=wide_dtype(block.stored))
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


def _diagonal_push(centre: Tensor, parents: Tensor, mean: Tensor, shares: Tensor, scale: Tensor) -> _Push:
    # A variance is a difference of moments: what rounding may have left of nothing is nothing.
    target = shares @ torch.where(parents > _ROUNDING * scale, parents, 0.0).sqrt()
    own = torch.where(mean > _ROUNDING * scale, mean, 0.0).sqrt()
    spread = own > NEGLIGIBLE * target
    stretch = torch.where(spread, (target - own) / torch.where(spread, own, 1.0), 0.0)
    stretch = torch.where(stretch.abs() > _ROUNDING, stretch, 0.0)
    return _Push(centre, stretch if bool(stretch.any()) else None, _restored(target.square(), mean))


def _full_push(centre: Tensor, parents: Tensor, mean: Tensor, shares: Tensor) -> _Push:
    # geoopt takes a while to import, so only merges that need it pay.
    from merge_models.manifolds.frechet import frechet_mean
    from merge_models.manifolds.gaussians import BuresWasserstein, optimal_map

    found = frechet_mean(BuresWasserstein(), parents, shares, tolerance=1e-9, max_iterations=50)
    stretch = optimal_map(mean, found.point) - torch.eye(len(mean), dtype=torch.float64)
    figures = _restored(found.point.diagonal(), mean.diagonal())
    figures |= {"residual": float(found.residual), "converged": bool(found.converged)}
    return _Push(centre, stretch, figures)


def _restored(target: Tensor, mean: Tensor) -> Figures:
    """How far the mean's rows spread against the barycenter's, before the push."""
    whole = float(target.sum())
    return {"spread_of_mean": (float(mean.sum()) / whole) ** 0.5 if whole > 0 else 1.0}


def _columns(spec: TensorSpec) -> int:
    return spec.count // max(spec.rows, 1)
