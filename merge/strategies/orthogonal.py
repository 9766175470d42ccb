"""Orthogonal merging: what rotates the base is averaged as rotations, what is left over as numbers."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.merge.errors import RecipeError
from merge_models.merge.kernels.blocks import Span
from merge_models.merge.kernels.task_vectors import mix
from merge_models.merge.kernels.terms import Mixing, Rule
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
from merge_models.merge.strategies.cuts import EVERYTHING, Cut
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.rotation_fit import DeltaMoments, angle_of, defect_of, less_identity
from merge_models.merge.strategies.rotation_mean import rotation_mean
from merge_models.merge.strategies.rotation_side import RotationSide
from merge_models.merge.strategies.select import largest
from merge_models.merge.strategies.ties import deltas_of, trim

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
        assert isinstance(self.weight, tuple)
        if abs(math.fsum(self.weight)) <= 1e-12 * math.fsum(map(abs, self.weight)):
            told = ", ".join(f"{weight:g}" for weight in self.weight)
            raise RecipeError(f"weights {told} sum to zero: their rotations have no mean; change one of them")

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

        def carried(block: Block) -> tuple[list[Span], Span | None]:
            return deltas_of(parents, self._carried(block, found))

        kept = [max(1, int(self.density * spec.count))]
        cuts = yield from largest(len(parents), carried, lambda _: [kept] * len(parents))
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
        """The live parents' :class:`DeltaMoments`; rows in conflict; whether float64 is called for.

        Deltas of models stored in 16 bits are known to a few digits: products in float32 do for them.
        """
        assert block.base is not None and block.stored_base is not None
        wide = any(stored.element_size() > 2 for stored in (*block.stored, block.stored_base))
        dtype = torch.float64 if wide else torch.float32
        base = side.split(block.base.to(dtype))
        deltas = [block.parents[i].sub_(block.base) for i in self._live()]
        masks = self._conflicts(deltas)
        shifts = torch.empty(len(deltas), side.blocks, side.size, side.size, dtype=torch.float64)
        energies = torch.zeros(len(deltas), dtype=torch.float64)
        for number, delta in enumerate(deltas):
            energies[number] = torch.linalg.vector_norm(delta, dtype=torch.float64) ** 2
            if masks is not None:
                delta.mul_(masks[number].unsqueeze(1))
            shifts[number] = base.mT @ side.split(delta.to(dtype))
        counts = torch.tensor([0 if masks is None else int(masks.sum()), wide], dtype=torch.int64)
        return (base.mT @ base).double(), shifts, energies, counts

    def _conflicts(self, deltas: Sequence[Tensor]) -> Tensor | None:
        """Rows of each delta that point against the mean delta ``[parents, rows]``; None: all count."""
        if self.variant == "global":
            return None
        shares = [share for share in self._shares() if share != 0.0]
        mean = torch.zeros_like(deltas[0])
        for delta, share in zip(deltas, shares, strict=True):
            mean.add_(delta, alpha=share)
        return torch.stack([(delta * mean).sum(1, dtype=torch.float64) < 0 for delta in deltas])

    def _found(self, rows: int, totals: Moments) -> _Found:
        moments, (conflicts, wide) = DeltaMoments(*totals[:3]), totals[3].tolist()
        if not moments.is_finite():
            return _Found()  # combining will name the model, or keep the bad values where they are
        live = self._live()
        shares = [self._shares()[i] for i in live]
        rotations = moments.rotations(torch.float64 if wide else torch.float32)
        mean = rotation_mean(rotations, shares, self.map, self.magnitude_correction)
        figures: Figures = {
            "angle": angle_of(mean.rotation),
            "correction": mean.correction,
            "defect": defect_of(mean.rotation),
        }
        explained = moments.explained(mean.members)
        if explained is not None:
            figures["explained"] = explained
        if self.variant == "conflict":
            figures["conflict_rows"] = conflicts / (len(live) * rows)
        if mean.half_turns:
            figures["half_turns"] = mean.half_turns
        turn = less_identity(mean.rotation)
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
                merged.add_(parent.to(torch.float64, copy=True).sub_(anchor), alpha=scale)
        if found.turn is not None:
            merged.add_(self._side(block.spec).times(block.base, found.turn))
        return merged.to(anchor.dtype)

    def _carried(self, block: Block, found: _Found) -> Block:
        """Live parents and base after the merged rotation; ``W_i + W_0 (R_m - R_i)`` keeps its residual.

        A parent whose rotation is the merged one stays what it is, to the bit.
        """
        if found.turn is None and not any(carry is not None for carry in found.carries):
            return replace(block, spans=tuple(block.spans[i] for i in self._live()))
        assert block.base is not None
        side, turned = self._side(block.spec), block.base.clone()
        if found.turn is not None:
            turned.add_(side.times(block.base, found.turn))
        parents = tuple(block.parents[i] for i in self._live())
        for parent, carry in zip(parents, found.carries, strict=True):
            if carry is not None:
                parent.add_(side.times(block.base, carry))
        return replace(block, spans=tuple(map(Span.of, parents)), base_span=Span.of(turned))

    def _elected(self, block: Block, found: _Found) -> Tensor:
        """The rotated base plus ``lambda`` times the trimmed residuals that agree with the elected sign."""
        carried = self._carried(block, found)
        assert carried.base_span is not None and isinstance(self.weight, tuple)
        thinned = [trim(cut, carried) for cut in found.cuts]
        weights = [self.weight[i] for i in self._live()]
        mixing = Mixing(Rule.ELECT, weights, weights, normalize=True, scale=self.lambda_)
        mixed = mix(carried.spans, carried.base_span, thinned, mixing)
        return mixed.tensor().view(block.stored[0].shape)


def _or_none(matrix: Tensor) -> Tensor | None:
    return matrix if bool(matrix.any()) else None
