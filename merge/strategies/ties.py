"""TIES: trim each task vector to its largest elements, elect signs, average those that agree."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from merge_models.merge.kernels.blocks import Span
from merge_models.merge.kernels.terms import Thinned
from merge_models.merge.strategies.base import Block, Figures, Pass, Survey, TensorSpec, Terms
from merge_models.merge.strategies.cuts import EVERYTHING, NOTHING, Cut, Totals
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.select import largest, selection_bytes
from merge_models.merge.strategies.sign_consensus import AbstractTaskVectors, norms_of, ratios


@dataclass(frozen=True)
class Trims:
    """What a survey found: each parent's cut, and the factor that gives it its norm back."""

    cuts: tuple[Cut, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True)
class Ties(AbstractTaskVectors):
    """Trims task vectors to their largest elements, elects signs, and averages the elements that agree.

    Of n elements exactly ``int(density * n)`` are kept, at least one; of equal ones, those that come first.
    Kernel: trim and elect. Carrier: flat space about the base. Source: Yadav et al. 2023, "TIES-merging"
    (2306.01708). The paper trims the whole task vector (``scope: model``) to the largest 20%
    (``density: 0.2``); mergekit, and the default here, each tensor (``scope: tensor``) to ``density: 1``.
    As in mergekit weights take part in the vote, and a sum of zero counts as positive. ``rescale: true`` of
    mergekit recipes gives each trimmed tensor its L1 norm back (``l1``).
    """

    name: ClassVar[str] = "ties"
    source: ClassVar[str] = "Yadav et al. 2023, arXiv:2306.01708"
    elects: ClassVar[bool] = True

    normalize: bool = parameter(True, "divide the sum by the weights of the parents in it")
    density: float | tuple[float, ...] = parameter(
        1.0, "share of the elements to keep, the largest", per_model=True, minimum=0, maximum=1
    )
    rescale: str = parameter(
        "none", "l1 gives trimmed task vectors their L1 norm back", choices=("none", "l1"),
        flags=("none", "l1"),
    )  # fmt: skip
    scope: str = parameter("tensor", "what the density is a share of", choices=("tensor", "model"))

    @property
    def survey_group(self) -> tuple[Any, ...] | None:
        return (self.density, self.rescale) if self.scope == "model" else None

    def survey(self, spec: TensorSpec) -> Survey:
        assert isinstance(self.density, tuple)
        densities = self.density
        cuts = [EVERYTHING if density > 0 else NOTHING for density in densities]
        trimmed = [parent for parent, density in enumerate(densities) if 0 < density < 1]
        if trimmed:

            def sizes(totals: Totals) -> list[list[int]]:
                return [[max(1, int(densities[parent] * totals.elements))] for parent in trimmed]

            found = yield from largest(len(trimmed), partial(deltas_of, trimmed), sizes, spec.surveyed)
            for parent, (cut,) in zip(trimmed, found, strict=True):
                cuts[parent] = cut
        factors = (1.0,) * len(cuts)
        if trimmed and self.rescale == "l1":
            (sums,) = yield Pass(lambda block: (norms_of(block, [trim(cut, block) for cut in cuts]),))
            factors = ratios(sums)
        return Trims(tuple(cuts), factors)

    def survey_bytes(self, spec: TensorSpec) -> int:
        return selection_bytes(spec.surveyed, len(self.weights))

    def terms(self, block: Block, survey: Trims) -> Terms:
        pairs = zip(survey.cuts, survey.factors, strict=True)
        return [trim(cut, block, factor) for cut, factor in pairs], self.mixing

    def figures(self, spec: TensorSpec, survey: Trims) -> Figures:
        del spec
        found = {i: cut for i, cut in enumerate(survey.cuts) if cut not in (EVERYTHING, NOTHING)}
        return {f"threshold of parent {i}": magnitude(cut.key) for i, cut in found.items()}


def deltas_of(parents: Sequence[int], block: Block) -> tuple[list[Span], Span | None]:
    """A :data:`merge_models.merge.strategies.cuts.Series` of some parents' task vectors."""
    return [block.spans[p] for p in parents], block.base_span


def trim(cut: Cut, block: Block, factor: float = 1.0) -> Thinned:
    """A parent's task vector within a cut, in one block."""
    return Thinned(low=cut.least(block.number), keep=cut.ties(block.number), factor=factor)


def magnitude(key: int) -> float:
    """The number whose key it is."""
    return struct.unpack("<f", struct.pack("<i", key))[0]
