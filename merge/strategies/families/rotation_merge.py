"""Rotations of a base and what they leave over: fitted to deltas, averaged, and put back together."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Figures, Moments, Pass, Survey
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.selection.cuts import EVERYTHING, Cut
from merge_models.merge.kernels.selection.select import largest
from merge_models.merge.kernels.task_vectors import mix
from merge_models.merge.kernels.terms import Mixing, Rule
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.rotation_fit import (
    DeltaMoments,
    angle_of,
    defect_of,
    less_identity,
)
from merge_models.merge.strategies.families.rotation_mean import rotation_mean
from merge_models.merge.strategies.families.rotation_side import RotationSide
from merge_models.merge.strategies.families.trimming import deltas_of, trim

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Rotations:
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
class RotationMerge:
    """Merges one tensor as ``W_0 R_m + merge(W_i - W_0 R_i)``.

    Attributes:
        weights, shares: of the parents, as they are and divided by their sum.
        rows: of the tensor.
        side: what is rotated; None for tensors that are no matrices, of which all is residual.
        conflict: whether rotations are fitted to the rows that point against the mean delta alone.
        chart: of generators, ``cayley`` or ``log``.
        corrected: whether the mean generator gets the generators' mean length.
        residual: ``linear``, ``task_arithmetic`` or ``ties``.
        scale: of the merged residual.
        density: share of each residual that ``ties`` keeps.
    """

    weights: tuple[float, ...]
    shares: tuple[float, ...]
    rows: int
    side: RotationSide | None
    conflict: bool
    chart: str
    corrected: bool
    residual: str
    scale: float
    density: float

    @property
    def is_surveyed(self) -> bool:
        """Whether anything has to be known before the first block is merged."""
        return self.side is not None or self.residual == "ties"

    def survey(self, elements: int) -> Survey:
        """Fits and averages rotations, then finds what ``ties`` keeps of the residuals."""
        rotations = Rotations()
        if self.side is not None:
            moments = yield Pass(self._moments)
            rotations = self._rotations(moments)
        if self.residual == "ties":
            rotations = replace(rotations, cuts=(yield from self._cuts(elements, rotations)))
        return rotations

    def survey_bytes(self, elements: int) -> int:
        """Returns the memory of a survey: moments of a block, their total, and a dozen matrices to solve."""
        del elements
        return 0 if self.side is None else self.side.bytes * (2 * len(self.shares) + 12)

    def combine(self, block: Block, survey: Rotations | None) -> Tensor:
        """Merges a block."""
        rotations = survey or Rotations()
        return self._elected(block, rotations) if self.residual == "ties" else self._sum(block, rotations)

    @cached_property
    def _live(self) -> list[int]:
        return [i for i, share in enumerate(self.shares) if share != 0.0]

    @property
    def _scales(self) -> tuple[tuple[float, ...], float]:
        """What each delta counts in the merged residual; and what the base keeps: 1 minus their sum."""
        weights = self.shares if self.residual == "linear" else self.weights
        scales = tuple(self.scale * weight for weight in weights)
        rest = math.fsum([1.0, *[-scale for scale in scales]])
        return scales, 0.0 if abs(rest) <= 1e-15 * len(scales) else rest

    def _side(self) -> RotationSide:
        assert self.side is not None, "only matrices are rotated"
        return self.side

    def _cuts(self, elements: int, survey: Rotations) -> Generator[Pass, Moments, tuple[Cut, ...]]:
        parents = range(len(self._live))
        if self.density == 1.0:
            return (EVERYTHING,) * len(parents)
        kept = [max(1, int(self.density * elements))]
        series = partial(self._residuals, survey)
        cuts = yield from largest(len(parents), series, lambda _: [kept] * len(parents))
        return tuple(cut for (cut,) in cuts)

    def _residuals(self, survey: Rotations, block: Block) -> tuple[list[Span], Span | None]:
        return deltas_of(range(len(self._live)), self._carried(block, survey))

    def _moments(self, block: Block) -> Moments:
        """The live parents' :class:`DeltaMoments`; rows in conflict; whether float64 is called for.

        Deltas of models stored in 16 bits are known to a few digits: products in float32 do for them.
        """
        assert block.base is not None and block.stored_base is not None
        wide = any(stored.element_size() > 2 for stored in (*block.stored, block.stored_base))
        dtype = torch.float64 if wide else torch.float32
        side = self._side()
        base = side.split(block.base.to(dtype))
        deltas = [block.parents[i].sub_(block.base) for i in self._live]
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
        if not self.conflict:
            return None
        shares = [share for share in self.shares if share != 0.0]
        mean = torch.zeros_like(deltas[0])
        for delta, share in zip(deltas, shares, strict=True):
            mean.add_(delta, alpha=share)
        return torch.stack([(delta * mean).sum(1, dtype=torch.float64) < 0 for delta in deltas])

    def _rotations(self, totals: Moments) -> Rotations:
        moments, (conflicts, wide) = DeltaMoments(*totals[:3]), totals[3].tolist()
        if not moments.is_finite():
            return Rotations()  # combining will name the model, or keep the bad values where they are
        live = self._live
        shares = [self.shares[i] for i in live]
        rotations = moments.rotations(torch.float64 if wide else torch.float32)
        mean = rotation_mean(rotations, shares, self.chart, self.corrected)
        figures: Figures = {
            "angle": angle_of(mean.rotation),
            "correction": mean.correction,
            "defect": defect_of(mean.rotation),
        }
        explained = moments.explained(mean.members)
        if explained is not None:
            figures["explained"] = explained
        if self.conflict:
            figures["conflict_rows"] = conflicts / (len(live) * self.rows)
        if mean.half_turns:
            figures["half_turns"] = mean.half_turns
        turn = less_identity(mean.rotation)
        carries = [mean.rotation - member for member in mean.members]
        if self.residual == "ties":
            return Rotations(_or_none(turn), tuple(map(_or_none, carries)), figures)
        # A linear residual needs one matrix: what the base keeps turns with it, parents are carried along.
        scales, rest = self._scales
        turn *= rest
        for number, carry in zip(live, carries, strict=True):
            turn.add_(carry, alpha=scales[number])
        return Rotations(_or_none(turn), (), figures)

    def _sum(self, block: Block, survey: Rotations) -> Tensor:
        """``W_0 + W_0 turn + sum_i scale_i D_i``, about a parent where the base has no share of its own."""
        assert block.base is not None
        scales, rest = self._scales
        anchor = block.base if rest else block.parents[self._live[0]]
        merged = anchor.to(torch.float64, copy=True)
        for parent, scale in zip(block.parents, scales, strict=True):
            if scale and parent is not anchor:
                merged.add_(parent.to(torch.float64, copy=True).sub_(anchor), alpha=scale)
        if survey.turn is not None:
            merged.add_(self._side().times(block.base, survey.turn))
        return merged.to(anchor.dtype)

    def _carried(self, block: Block, survey: Rotations) -> Block:
        """Live parents and base after the merged rotation; ``W_i + W_0 (R_m - R_i)`` keeps its residual.

        A parent whose rotation is the merged one stays what it is, to the bit.
        """
        if survey.turn is None and not any(carry is not None for carry in survey.carries):
            return block.with_inputs([block.spans[i] for i in self._live], block.base_span)
        assert block.base is not None
        side, turned = self._side(), block.base.clone()
        if survey.turn is not None:
            turned.add_(side.times(block.base, survey.turn))
        parents = tuple(block.parents[i] for i in self._live)
        for parent, carry in zip(parents, survey.carries, strict=True):
            if carry is not None:
                parent.add_(side.times(block.base, carry))
        return block.with_inputs(tuple(map(Span.of, parents)), Span.of(turned))

    def _elected(self, block: Block, survey: Rotations) -> Tensor:
        """The rotated base plus ``lambda`` times the trimmed residuals that agree with the elected sign."""
        carried = self._carried(block, survey)
        assert carried.base_span is not None
        thinned = [trim(cut, carried) for cut in survey.cuts]
        weights = [self.weights[i] for i in self._live]
        mixing = Mixing(Rule.ELECT, weights, weights, normalize=True, scale=self.scale)
        mixed = mix(carried.spans, carried.base_span, thinned, mixing)
        return mixed.tensor().view(block.stored[0].shape)


def _or_none(matrix: Tensor) -> Tensor | None:
    return matrix if bool(matrix.any()) else None
