"""PCB: parents compete for each element by how much it matters to them and how well it fits the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel, Mixer, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.span import Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.competition import Range, compete_into, scores
from merge_models.merge.kernels.selection.cuts import Cut, Totals
from merge_models.merge.kernels.selection.select import largest, sample_of, selection_bytes
from merge_models.merge.strategies.families.blocks import mixing_kernel
from merge_models.merge.strategies.families.size_ranges import ranges_of_sizes
from merge_models.merge.strategies.families.trimming import magnitude


@dataclass(frozen=True)
class Ranges:
    """What a survey found, for each parent: the range of sizes, and of the scores that count."""

    sizes: tuple[Range, ...]
    scores: tuple[Range, ...]


@dataclass(frozen=True)
class Pcb(AbstractStrategy):
    """Averages task vectors, each element weighted by how much it matters to its parent and fits the others.

    Parent i's score is ``exp(N s^2) * tanh(t_i * sum_j t_j)`` with the size ``s`` of ``t_i`` scaled to
    [0, 1]; the best ``ratio`` of each parent's scores, scaled to [0, 1], weight the mean. Of the sizes,
    0.01% at either end are clamped. Kernel: competition. Carrier: flat space about the base. Source: Du et
    al. 2024, "Parameter competition balancing" (2410.02396), in the form of the authors' program, over the
    whole model (``scope: model``) or each tensor. Scores below zero never count.
    """

    name: ClassVar[str] = "pcb"
    source: ClassVar[str] = "Du et al. 2024, arXiv:2410.02396"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their mean")
    ratio: float = parameter(0.1, "share of each parent's scores that count, the best", above=0, maximum=1)
    scope: str = parameter("model", "what sizes and scores are compared over", choices=("tensor", "model"))

    def kernel(self, case: Case) -> Kernel:
        return mixing_kernel(
            case,
            self._mixer,
            survey=self._survey,
            shared=(self.ratio,) if self.scope == "model" else None,
            figures=_least_scores,
            survey_bytes=partial(selection_bytes, count=len(self._weights)),
        )

    def _survey(self, elements: int) -> Survey:
        sample = yield from sample_of(elements)
        sizes = yield from ranges_of_sizes(len(self._weights), elements, sample)
        best = yield from largest(len(sizes), partial(_scored, sizes), self._score_ranks, elements, sample)
        return Ranges(sizes, tuple((_score(least), _score(most)) for least, most in best))

    def _mixer(self, block: Block, survey: Ranges) -> Mixer:
        def mix(out: Span) -> int:
            *parents, base = (span.first(out.count) for span in (*block.spans, block.origin))
            return compete_into(parents, base, survey.sizes, survey.scores, self._weights, self.lambda_, out)

        return mix

    @property
    def _weights(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return self.weight

    def _score_ranks(self, totals: Totals) -> list[list[int]]:
        return [[max(1, math.ceil(self.ratio * totals.elements)), 1]] * len(totals.positive)


def _scored(sizes: tuple[Range, ...], block: Block) -> tuple[list[Span], None]:
    return scores(block.spans, block.origin, sizes), None


def _least_scores(survey: Ranges) -> Figures:
    return {f"least score of parent {i}": least for i, (least, _) in enumerate(survey.scores)}


def _score(cut: Cut) -> float:
    return magnitude(max(cut.key, 0))
