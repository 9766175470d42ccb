"""Wasserstein barycenter: the mean of the models, its rows given back the spread that averaging takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.merge.errors import PlanError
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
from merge_models.merge.strategies.spherical import NEGLIGIBLE, base_under, shares_of

MAX_COLUMNS = 4096
"""Columns that ``covariance: full`` takes: it factors matrices of this size, many times."""

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
        return base_under(parameters.get("origin", "zero"))

    def validate(self, count: int) -> None:
        shares_of(self.weight)

    @property
    def grain(self) -> Grain:
        return Grain.ROW

    def check(self, spec: TensorSpec) -> None:
        columns = _columns(spec)
        if self.covariance == "full" and spec.rows > 1 and columns > MAX_COLUMNS:
            raise PlanError(
                f"tensor '{spec.name}': covariance: full takes up to {MAX_COLUMNS} columns, not {columns};"
                " use covariance: diagonal (for this tensor, by a filter)"
            )

    def block_rows(self, spec: TensorSpec) -> int:
        return _columns(spec) if self.covariance == "full" else 1

    def survey_bytes(self, spec: TensorSpec) -> int:
        assert isinstance(self.weight, tuple)
        columns = _columns(spec)
        size = columns * columns if self.covariance == "full" else columns
        return 8 * size * 2 * (len(self.weight) + 4)

    def survey(self, spec: TensorSpec) -> Survey | None:
        """Sums and second moments of the parents' rows and of their mean's."""
        return self._row_moments(spec) if spec.rows > 1 else None

    def _row_moments(self, spec: TensorSpec) -> Survey:
        sums, seconds = yield Pass(self._measure)
        centres = sums / spec.rows
        if self.covariance == "full":
            outer = centres.unsqueeze(-1) * centres.unsqueeze(-2)
        else:
            outer = centres.square()
        covariances = seconds / spec.rows - outer
        return self._push(centres[-1], covariances[:-1], covariances[-1], seconds[-1] / spec.rows)

    def _measure(self, block: Block) -> Moments:
        """Of each parent that has weight, and of the mean last: the sum of rows, and of their squares or products."""
        rows = [point for _, point in self._points(block)]
        rows.append(self._mean(block) - (0 if block.base is None else block.base))
        if self.covariance == "full":
            seconds = [x.mT @ x for x in rows]
        else:
            seconds = [x.square().sum(0) for x in rows]
        return torch.stack([x.sum(0) for x in rows]), torch.stack(seconds)

    def _points(self, block: Block) -> list[tuple[float, Tensor]]:
        """(share, rows in float64) of each parent that has weight."""
        shares = shares_of(self.weight)
        pairs = [(share, x.double()) for share, x in zip(shares, block.parents, strict=True) if share > 0]
        return pairs if block.base is None else [(share, x - block.base) for share, x in pairs]
