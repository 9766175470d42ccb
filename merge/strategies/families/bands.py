"""Task vectors between two cuts: what both kinds of breadcrumbs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.kernels.selection.cuts import EVERYTHING, NOTHING, Cut, Totals
from merge_models.merge.kernels.selection.select import largest, selection_bytes
from merge_models.merge.kernels.terms import Thinned
from merge_models.merge.strategies.families.task_vectors import (
    AbstractTaskVectors,
    Terms,
    added_norms,
    ratios,
    term_kernel,
)
from merge_models.merge.strategies.families.trimming import deltas_of, magnitude


@dataclass(frozen=True)
class Bands:
    """What a survey found: the cuts (not too small, too large) of each parent, and its factor."""

    cuts: tuple[tuple[Cut, Cut], ...]
    factors: tuple[float, ...]


@dataclass(frozen=True)
class AbstractBreadcrumbs(AbstractTaskVectors):
    """Of n elements the ``int(gamma * n)`` largest are dropped, then the smallest, until ``int(density * n)``
    are left. Where that leaves too few, fewer of the largest are dropped. ``density: 1`` keeps everything.
    """

    density: float | tuple[float, ...] = parameter(
        1.0, "share of the elements to keep", per_model=True, minimum=0, maximum=1
    )
    gamma: float | tuple[float, ...] = parameter(
        0.01, "share of the elements to drop as outliers, the largest", per_model=True, minimum=0, maximum=1
    )
    rescale: str = parameter(
        "none", "l1 gives masked task vectors their L1 norm back", choices=("none", "l1"),
        flags=("none", "l1"),
    )  # fmt: skip

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(
            case, self._terms, survey=self._survey, figures=_edges, survey_bytes=self._survey_bytes
        )

    def _survey(self, elements: int) -> Survey:
        cuts = [(EVERYTHING, NOTHING)] * len(self.weights)
        masked = [parent for parent, (density, _) in enumerate(self._shares) if density < 1]
        if masked:

            def sizes(totals: Totals) -> list[list[int]]:
                return [_sizes(totals.elements, *self._shares[parent]) for parent in masked]

            pairs = yield from largest(len(masked), partial(deltas_of, masked), sizes, elements)
            for parent, (small, large) in zip(masked, pairs, strict=True):
                cuts[parent] = (small, large)
        factors = (1.0,) * len(cuts)
        if masked and self.rescale == "l1":
            (norms,) = yield Pass(added_norms, (_bands, (cuts,)))
            factors = ratios(norms)
        return Bands(tuple(cuts), factors)

    def _survey_bytes(self, elements: int) -> int:
        return selection_bytes(elements, 2 * len(self.weights))

    def _terms(self, block: Block, survey: Bands) -> Terms:
        pairs = zip(survey.cuts, survey.factors, strict=True)
        return [_band(cuts, block, factor) for cuts, factor in pairs], self.mixing

    @property
    def _shares(self) -> list[tuple[float, float]]:
        assert isinstance(self.density, tuple) and isinstance(self.gamma, tuple)
        return list(zip(self.density, self.gamma, strict=True))


def _sizes(elements: int, density: float, gamma: float) -> list[int]:
    kept, outliers = int(density * elements), int(gamma * elements)
    small = max(0, elements - kept - outliers)
    return [elements - small, elements - small - kept]


def _band(cuts: tuple[Cut, Cut], block: Block, factor: float = 1.0) -> Thinned:
    """A parent's task vector between two cuts, in one block."""
    (small, large), number = cuts, block.number
    edges = (small.least(number), large.least(number), small.ties(number), large.ties(number))
    return Thinned(*edges, factor=factor)


def _bands(block: Block, cuts: Sequence[tuple[Cut, Cut]]) -> list[Thinned]:
    return [_band(pair, block) for pair in cuts]


def _edges(survey: Bands) -> Figures:
    figures: Figures = {}
    for parent, (small, large) in enumerate(survey.cuts):
        if small not in (EVERYTHING, NOTHING):
            figures[f"least of parent {parent}"] = magnitude(small.key)
        if large not in (EVERYTHING, NOTHING):
            figures[f"most of parent {parent}"] = magnitude(large.key)
    return figures
