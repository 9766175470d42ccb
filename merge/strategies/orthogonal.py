"""Orthogonal merging: what rotates the base is averaged as rotations, what is left over as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.manifolds.procrustes import SharedProcrustes
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
    normalised,
)
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.rotation_mean import RotationMean, rotation_mean
from merge_models.merge.strategies.rotation_side import RotationSide

_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class _Found:
    """What a tensor's survey found.

    Attributes:
        change: of the base: merged minus base is ``base change`` plus scaled deltas. None: no rotation.
        figures: for the summary.
    """

    change: Tensor | None = None
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Orthogonal(AbstractStrategy):
    """Splits each delta into a rotation of the base and a residual; rotations are averaged as rotations.

    ``W_m = W_0 R_m + lambda merge(W_i - W_0 R_i)``. R_i is the rotation that takes the base nearest to parent i
    (orthogonal Procrustes). R_m has the weighted mean of the R_i's generators, lengthened to their mean norm
    (``magnitude_correction``). Weights of the rotations, and of residual ``linear``, are divided by their sum;
    ``task_arithmetic`` takes them as they are. ``lambda: 0`` gives the rotated base alone: its singular values are
    those of the base, and so is, where the input side is rotated, the hyperspherical energy of its rows. With a
    residual neither is kept.

    Kernel: mean of generators. Carrier: rotation group. Source: Yang, Shi & Liu 2026, "Orthogonal Model Merging"
    (2602.05943). Their G and C variants are ``global`` and ``conflict``; ``conflict`` fits R_i to those rows of a delta
    that have a negative inner product with the mean delta, which is few or none where deltas are nearly
    orthogonal: ``conflict_rows`` says how many. Their ``task_arithmetic`` at lambda 1/N is ``linear`` here.

    Their code solves Procrustes by a plain SVD: where a matrix is wider than high, the rotation in its null
    space is then arbitrary, or a reflection that has no generator. Here R_i is in SO(d), and of the minimisers the
    one closest to the identity. They trim for ``ties`` over the whole model; here over each tensor. Only
    matrices are rotated; of other tensors everything is residual. A parent that turns some plane by pi
    has no generator: it is not rotated, and counts in ``half_turns``. ``side: output`` reads whole tensors at a time;
    ``smaller`` does where rows are fewer than columns, which is much cheaper for wide matrices.

    mergekit has no such method; a fork's ``ortho_merge`` leaves the correction out and turns tall matrices the
    wrong way.
    """

    name: ClassVar[str] = "orthogonal"
    aliases: ClassVar[tuple[str, ...]] = ("orthomerge",)
    carrier: ClassVar[str] = "rotation group"
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
        self._shares()

    def check(self, spec: TensorSpec) -> None:
        if len(spec.shape) == 2:
            self._side(spec)

    @property
    def grain(self) -> Grain:
        return Grain.ROW

    def block_rows(self, spec: TensorSpec) -> int:
        if len(spec.shape) != 2:
            return 1
        return spec.rows if self._side(spec).output else _BLOCK_ELEMENTS // max(spec.shape[1], 1)

    def survey_bytes(self, spec: TensorSpec) -> int:
        if len(spec.shape) != 2:
            return 0
        # Moments of a block and their total, then the solver's dozen of matrices.
        return self._side(spec).bytes * (2 * len(self._shares()) + 12)

    def survey(self, spec: TensorSpec) -> Survey | None:
        return self._rounds(spec) if len(spec.shape) == 2 and spec.count else None

    def _rounds(self, spec: TensorSpec) -> Survey:
        side = self._side(spec)
        moments = yield Pass(partial(self._moments, side))
        return self._found(side, spec.rows, moments)

    def combine(self, block: Block, survey: Any) -> Tensor:
        found = survey or _Found()
        return self._sum(block, found)

    def figures(self, spec: TensorSpec, survey: Any) -> Figures:
        del spec
        return survey.figures if survey else {}

    def _side(self, spec: TensorSpec) -> RotationSide:
        return RotationSide.of(spec, self.side, self.block_size)

    def _shares(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return normalised(self.weight)

    def _live(self) -> list[int]:
        return [i for i, share in enumerate(self._shares()) if share != 0.0]

    def _scales(self) -> tuple[tuple[float, ...], float]:
        """What each delta counts in the merged residual; and what the base keeps: 1 minus their sum."""
        assert isinstance(self.weight, tuple)
        weights = self._shares() if self.residual == "linear" else self.weight
        scales = tuple(self.lambda_ * weight for weight in weights)
        rest = math.fsum([1.0, *[-scale for scale in scales]])
        return scales, 0.0 if abs(rest) <= 1e-15 * len(scales) else rest

    # ---- the survey ----

    def _moments(self, side: RotationSide, block: Block) -> Moments:
        """``W_0^T W_0``, ``W_0^T D_i``, ``|D_i|^2``, and rows in conflict; D_i are the live parents' deltas."""
        assert block.base is not None
        base = side.split(block.base.double())
        deltas = [block.parents[i].sub_(block.base) for i in self._live()]
        masks = self._conflicts(deltas)
        shifts = torch.empty(len(deltas), side.blocks, side.size, side.size, dtype=torch.float64)
        energies = torch.zeros(len(deltas), dtype=torch.float64)
        for number, delta in enumerate(deltas):
            wide = delta.double()
            energies[number] = torch.linalg.vector_norm(wide) ** 2
            if masks is not None:
                wide = wide * masks[number].unsqueeze(1)
            torch.matmul(base.mT, side.split(wide), out=shifts[number])
        rows = torch.zeros(1, dtype=torch.int64) if masks is None else masks.sum().reshape(1)
        return base.mT @ base, shifts, energies, rows

    def _conflicts(self, deltas: Sequence[Tensor]) -> Tensor | None:
        """Rows of each delta that point against the mean delta ``[parents, rows]``; None: all count."""
        if self.variant == "global":
            return None
        shares = [share for share in self._shares() if share != 0.0]
        mean = torch.zeros_like(deltas[0])
        for delta, share in zip(deltas, shares, strict=True):
            mean.add_(delta, alpha=share)
        return torch.stack([(delta * mean).sum(1, dtype=torch.float64) < 0 for delta in deltas])

    def _found(self, side: RotationSide, rows: int, moments: Moments) -> _Found:
        gram, shifts, energies, conflicts = moments
        if not bool(torch.isfinite(gram).all() & torch.isfinite(shifts).all()):
            return _Found()  # combining will name the model, or keep the bad values where they are
        live = self._live()
        shares = [self._shares()[i] for i in live]
        rotations = _procrustes(gram, shifts, energies)
        mean = rotation_mean(rotations, shares, self.map, self.magnitude_correction)
        figures = _figures(mean, gram, shifts, energies)
        if self.variant == "conflict":
            figures["conflict_rows"] = int(conflicts) / (len(live) * rows)
        scales, rest = self._scales()
        change = rest * _less_identity(mean.rotation)
        for number, parent in zip(live, mean.members, strict=True):
            change.add_(mean.rotation - parent, alpha=scales[number])
        return _Found(change if bool(change.any()) else None, figures)

    # ---- combining ----

    def _sum(self, block: Block, found: _Found) -> Tensor:
        """``W_0 + W_0 change + sum_i scale_i D_i``, about a parent where the base has no share of its own."""
        assert block.base is not None
        scales, rest = self._scales()
        anchor = block.base if rest else block.parents[self._live()[0]]
        merged = anchor.to(torch.float64, copy=True)
        for parent, scale in zip(block.parents, scales, strict=True):
            if scale and parent is not anchor:
                merged.add_(parent.double() - anchor, alpha=scale)
        if found.change is not None:
            merged.add_(self._side(block.spec).times(block.base, found.change))
        return merged.to(anchor.dtype)


def _procrustes(gram: Tensor, shifts: Tensor, energies: Tensor) -> list[Tensor]:
    """Each parent's rotation ``[blocks, b, b]``; equal moments are solved once."""
    solvers = [SharedProcrustes.from_gram(part) for part in gram]
    size = float(gram.diagonal(dim1=-2, dim2=-1).sum())
    rotations: list[Tensor] = []
    for number, shift in enumerate(shifts):
        twin = next((i for i in range(number) if torch.equal(shifts[i], shift)), None)
        if twin is not None:
            rotations.append(rotations[twin])
            continue
        # The last correction is small against the delta, not only against the base.
        delta = math.sqrt(float(energies[number]) / size) if size else 1.0
        tolerance = max(1e-4 * delta, 1e-12)
        solved = [s.solve(part, tolerance=tolerance) for s, part in zip(solvers, shift, strict=True)]
        rotations.append(torch.stack([near.rotation for near in solved]))
    return rotations


def _less_identity(rotation: Tensor) -> Tensor:
    return rotation - torch.eye(rotation.shape[-1], dtype=rotation.dtype)


def _figures(mean: RotationMean, gram: Tensor, shifts: Tensor, energies: Tensor) -> Figures:
    turn = _less_identity(mean.rotation)
    chord = float(turn.norm()) / math.sqrt(turn.shape[0] * turn.shape[1])
    figures: Figures = {
        "angle": 2 * math.asin(min(1.0, chord / 2)),
        "defect": float((turn + turn.mT + turn.mT @ turn).abs().max()),
        "correction": mean.correction,
    }
    # |D|^2 - |D - W_0 X|^2 = 2 <X, W_0^T D> - |W_0 X|^2, and X + X^T = -X^T X for a rotation I + X.
    explained = [
        2 * float((_less_identity(member) * (shift + gram)).sum() / energy)
        for member, shift, energy in zip(mean.members, shifts, energies, strict=True)
        if energy > 0
    ]
    if explained:
        figures["explained"] = math.fsum(explained) / len(explained)
    if mean.half_turns:
        figures["half_turns"] = mean.half_turns
    return figures
