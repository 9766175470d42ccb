"""Wasserstein barycenter: the mean of the models, its rows given back the spread that averaging takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Grain, Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.strategies.families.blocks import torch_kernel
from merge_models.merge.strategies.families.row_gaussians import Push, RowBarycenter
from merge_models.merge.strategies.families.weights import base_under_origin, shares_of

MAX_COLUMNS = 1024
"""Wider tensors are pushed by columns under ``covariance: full`` too, which factors columns^2, many times."""


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

    def kernel(self, case: Case) -> Kernel:
        full = self.covariance == "full" and case.columns <= MAX_COLUMNS
        barycenter = RowBarycenter(shares_of(self.weight), case.rows, full)
        return torch_kernel(
            case,
            barycenter.combine,
            grain=Grain.ROW,
            least_rows=case.columns if full else 1,
            survey=barycenter.survey if case.rows > 1 else None,
            figures=_figures,
            survey_bytes=partial(_survey_bytes, len(case.inputs.parents), case.columns, full),
        )


def _figures(survey: Push | None) -> Figures:
    return survey.figures if survey is not None else {}


def _survey_bytes(parents: int, columns: int, full: bool, elements: int) -> int:
    del elements
    return 8 * (columns * columns if full else columns) * 2 * (parents + 4)
