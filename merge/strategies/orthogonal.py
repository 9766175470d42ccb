"""Orthogonal merging: what rotates the base is averaged as rotations, what is left over as numbers."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.manifolds.procrustes import SharedProcrustes
from merge_models.merge.kernels.task_vectors import elected_sum
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
from merge_models.merge.strategies.select import EVERYTHING, Cut, largest
from merge_models.merge.strategies.ties import count_deltas, trimmed_by

_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class _Found:
    """What a tensor's survey found; ``[blocks, b, b]`` matrices, None where they are zero.

    Attributes:
        turn: ``R_m - I``.
        carries: ``R_m - R_i`` of each live parent.
        figures: for the summary.
        cuts: what ties keeps of each live parent's residual.
    """

    turn: Tensor | None = None
    carries: tuple[Tensor | None, ...] = ()
    figures: Figures = field(default_factory=dict)
    cuts: tuple[Cut, ...] = ()


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
        rotates = len(spec.shape) == 2
        return self._rounds(spec, rotates) if spec.count and (rotates or self.residual == "ties") else None

    def _rounds(self, spec: TensorSpec, rotates: bool) -> Survey:
        found = _Found()
        if rotates:
            moments = yield Pass(partial(self._moments, self._side(spec)))
            found = self._found(spec.rows, moments)
        if self.residual == "ties":
            found = replace(found, cuts=(yield from self._cuts(spec, found)))
        return found

    def _cuts(self, spec: TensorSpec, found: _Found) -> Generator[Pass, Moments, tuple[Cut, ...]]:
        parents = range(len(self._live()))
        if self.density == 1.0:
            return (EVERYTHING,) * len(parents)

        def count(block: Block, *window: Any) -> Tensor:
            return count_deltas(parents, self._carried(block, found), *window)

        kept = [max(1, int(self.density * spec.count))]
        cuts = yield from largest(len(parents), count, lambda _: [kept] * len(parents))
        return tuple(cut for (cut,) in cuts)

    def combine(self, block: Block, survey: Any) -> Tensor:
        found = survey or _Found()
        return self._elected(block, found) if self.residual == "ties" else self._sum(block, found)

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

    def _found(self, rows: int, moments: Moments) -> _Found:
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
        turn = _less_identity(mean.rotation)
        carries = [mean.rotation - member for member in mean.members]
        if self.residual == "ties":
            return _Found(_or_none(turn), tuple(map(_or_none, carries)), figures)
        # A linear residual needs one matrix: what the base keeps turns with it, parents are carried along.
        scales, rest = self._scales()
        turn *= rest
        for number, carry in zip(live, carries, strict=True):
            turn.add_(carry, alpha=scales[number])
        return _Found(_or_none(turn), (), figures)

    # ---- combining ----

    def _sum(self, block: Block, found: _Found) -> Tensor:
        """``W_0 + W_0 turn + sum_i scale_i D_i``, about a parent where the base has no share of its own."""
        assert block.base is not None
        scales, rest = self._scales()
        anchor = block.base if rest else block.parents[self._live()[0]]
        merged = anchor.to(torch.float64, copy=True)
        for parent, scale in zip(block.parents, scales, strict=True):
            if scale and parent is not anchor:
                merged.add_(parent.double() - anchor, alpha=scale)
        if found.turn is not None:
            merged.add_(self._side(block.spec).times(block.base, found.turn))
        return merged.to(anchor.dtype)

    def _carried(self, block: Block, found: _Found) -> Block:
        """Live parents and base after the merged rotation: parent i, ``W_i + W_0 (R_m - R_i)``, keeps its residual.

        A parent whose rotation is the merged one stays what it is, to the bit.
        """
        stored = tuple(block.stored[i] for i in self._live())
        if found.turn is None and not any(carry is not None for carry in found.carries):
            return replace(block, stored=stored)
        assert block.base is not None
        side, turned = self._side(block.spec), block.base.clone()
        if found.turn is not None:
            turned.add_(side.times(block.base, found.turn))
        parents = tuple(block.parents[i] for i in self._live())
        for parent, carry in zip(parents, found.carries, strict=True):
            if carry is not None:
                parent.add_(side.times(block.base, carry))
        return replace(block, stored=parents, stored_base=turned)

    def _elected(self, block: Block, found: _Found) -> Tensor:
        """The rotated base plus ``lambda`` times the trimmed residuals that agree with the elected sign."""
        carried = self._carried(block, found)
        assert carried.stored_base is not None and isinstance(self.weight, tuple)
        thinned = [trimmed_by(cut, carried, i, 1.0) for i, cut in enumerate(found.cuts)]
        weights = [self.weight[i] for i in self._live()]
        return elected_sum(
            carried.stored,
            carried.stored_base,
            thinned,
            weights,
            elect=True,
            normalize=True,
            scale=self.lambda_,
        )


def _or_none(matrix: Tensor) -> Tensor | None:
    return matrix if bool(matrix.any()) else None


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
