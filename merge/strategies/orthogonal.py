"""Orthogonal merging: what rotates the base is averaged as rotations, what is left over as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Grain, Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.errors import RecipeError
from merge_models.merge.strategies.families.blocks import torch_kernel
from merge_models.merge.strategies.families.rotation_merge import RotationMerge, Rotations
from merge_models.merge.strategies.families.rotation_side import RotationSide
from merge_models.merge.strategies.families.weights import normalised


@dataclass(frozen=True)
class Orthogonal(AbstractStrategy):
    """Splits each delta into a rotation of the base and a residual; rotations are averaged as rotations.

    ``W_m = W_0 R_m + lambda merge(W_i - W_0 R_i)``. R_i is the rotation that takes the base nearest to
    parent i (orthogonal Procrustes). R_m has the weighted mean of the generators of the R_i, lengthened to
    their mean norm (``magnitude_correction``). Weights are divided by their sum, but as they are where
    residuals are summed (``task_arithmetic``). ``lambda: 0`` gives the rotated base alone: it has the
    singular values of the base and, where the input side is rotated, the hyperspherical energy of its rows.
    Residuals change both.

    Kernel: mean of generators. Carrier: rotation group. Source: Yang, Shi & Liu 2026, "Orthogonal Model
    Merging" (2602.05943), whose G and C are ``global`` and ``conflict``. ``conflict`` fits R_i to the rows of
    a delta that have a negative inner product with the mean delta: few or none where deltas are nearly
    orthogonal (``conflict_rows`` tells). Their task arithmetic at lambda 1/N is ``linear`` here.

    Their code solves Procrustes by a plain SVD. Where a matrix is wider than high, the rotation of its null
    space is then arbitrary, or a reflection, which has no generator. Here R_i is in SO(d), and of the
    minimisers the one closest to the identity. They trim for ``ties`` over the whole model, here each tensor
    is trimmed. Only matrices are rotated; of other tensors all is residual. A parent that turns some plane
    by pi has no generator: it is not rotated, and ``half_turns`` counts it. Directions in which the base is
    weaker than the deltas turn far; the Cayley transform then takes much of the norm from them, ``log`` less.

    Cost: one eigenproblem of the rotated side for each tensor, and about a dozen products of its size for
    each parent, in float64; in float32 where all models are stored in 16 bits, whose rounding hides it.
    ``side: smaller`` is much cheaper for wide matrices; an output side needs its tensor in one block.

    mergekit has no such method; a fork's ``ortho_merge`` leaves the correction out and turns tall matrices
    the wrong way.
    """

    name: ClassVar[str] = "orthogonal"
    aliases: ClassVar[tuple[str, ...]] = ("orthomerge",)
    carrier: ClassVar[str] = "rotations"
    source: ClassVar[str] = "Yang, Shi & Liu 2026, arXiv:2602.05943"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True)
    variant: str = parameter(
        "global",
        "fit rotations to whole deltas, or to their rows that point against the mean delta",
        choices=("global", "conflict"),
    )
    residual: str = parameter(
        "linear",
        "how residuals are merged: weighted mean, weighted sum, or trimmed and sign-elected",
        choices=("linear", "task_arithmetic", "ties"),
    )
    lambda_: float = parameter(1.0, "scale of the merged residual")
    density: float = parameter(0.2, "share of each residual that ties keeps", above=0.0, maximum=1.0)
    magnitude_correction: bool = parameter(True, "give the mean generator the generators' mean length")
    map: str = parameter("cayley", "generators of rotations", choices=("cayley", "log"))
    side: str = parameter(
        "input", "which side of a matrix is rotated", choices=("input", "output", "smaller")
    )
    block_size: int = parameter(0, "size of the blocks of block-diagonal rotations; 0: whole", minimum=0)

    def validate(self, count: int) -> None:
        assert isinstance(self.weight, tuple)
        if abs(math.fsum(self.weight)) <= 1e-12 * math.fsum(map(abs, self.weight)):
            told = ", ".join(f"{weight:g}" for weight in self.weight)
            raise RecipeError(f"weights {told} sum to zero: their rotations have no mean; change one of them")

    def kernel(self, case: Case) -> Kernel:
        assert isinstance(self.weight, tuple)
        side = RotationSide.of(case, self.side, self.block_size) if len(case.shape) == 2 else None
        merge = RotationMerge(
            weights=self.weight,
            shares=normalised(self.weight),
            rows=case.rows,
            side=side,
            conflict=self.variant == "conflict",
            chart=self.map,
            corrected=self.magnitude_correction,
            residual=self.residual,
            scale=self.lambda_,
            density=self.density,
        )
        return torch_kernel(
            case,
            merge.combine,
            grain=Grain.ROW,
            least_rows=1 if side is None else side.least_rows(case),
            survey=merge.survey if case.count and merge.is_surveyed else None,
            figures=_figures,
            survey_bytes=merge.survey_bytes,
        )


def _figures(survey: Rotations | None) -> Figures:
    return survey.figures if survey else {}
