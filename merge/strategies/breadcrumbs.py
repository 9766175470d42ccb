"""Model breadcrumbs: drop the largest and the smallest elements of task vectors, sum what is between."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from merge_models.merge.kernels.terms import Thinned
from merge_models.merge.strategies.base import Block, Figures, Pass, Survey, TensorSpec, Terms
from merge_models.merge.strategies.cuts import EVERYTHING, NOTHING, Cut, Totals
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.select import largest, selection_bytes
from merge_models.merge.strategies.sign_consensus import AbstractTaskVectors, norms_of, ratios
from merge_models.merge.strategies.ties import deltas_of, magnitude


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

    def survey(self, spec: TensorSpec) -> Survey:
        cuts = [(EVERYTHING, NOTHING)] * len(self.weights)
        masked = [parent for parent, (density, _) in enumerate(self._shares) if density < 1]
        if masked:

            def sizes(totals: Totals) -> list[list[int]]:
                return [_sizes(totals.elements, *self._shares[parent]) for parent in masked]

            found = yield from largest(len(masked), partial(deltas_of, masked), sizes, spec.count)
            for parent, (small, large) in zip(masked, found, strict=True):
                cuts[parent] = (small, large)
        factors = (1.0,) * len(cuts)
        if masked and self.rescale == "l1":
            (sums,) = yield Pass(lambda block: (norms_of(block, [_band(pair, block) for pair in cuts]),))
            factors = ratios(sums)
        return Bands(tuple(cuts), factors)

    def survey_bytes(self, spec: TensorSpec) -> int:
        return selection_bytes(spec.surveyed, 2 * len(self.weights))

    def terms(self, block: Block, survey: Bands) -> Terms:
        pairs = zip(survey.cuts, survey.factors, strict=True)
        return [_band(cuts, block, factor) for cuts, factor in pairs], self.mixing

    def figures(self, spec: TensorSpec, survey: Bands) -> Figures:
        del spec
        figures: Figures = {}
        for parent, (small, large) in enumerate(survey.cuts):
            if small not in (EVERYTHING, NOTHING):
                figures[f"least of parent {parent}"] = magnitude(small.key)
            if large not in (EVERYTHING, NOTHING):
                figures[f"most of parent {parent}"] = magnitude(large.key)
        return figures

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


@dataclass(frozen=True)
class Breadcrumbs(AbstractBreadcrumbs):
    """Drops the largest and the smallest elements of task vectors and adds their weighted sum to the base.

    Kernel: band masks. Carrier: flat space about the base. Source: Davari & Belilovsky 2023, "Model
    breadcrumbs" (2312.06795). Thresholds are each tensor's, and exact; of equal elements those that come
    first count as larger.
    """

    name: ClassVar[str] = "breadcrumbs"
    source: ClassVar[str] = "Davari & Belilovsky 2023, arXiv:2312.06795"
    elects: ClassVar[bool] = False


@dataclass(frozen=True)
class BreadcrumbsTies(AbstractBreadcrumbs):
    """Drops the largest and the smallest elements of task vectors and sums those of each elected sign.

    Kernel: band masks, sign election. Carrier: flat space about the base. Source: Davari & Belilovsky 2023
    (2312.06795) with the election of Yadav et al. 2023 (2306.01708).
    """

    name: ClassVar[str] = "breadcrumbs_ties"
    source: ClassVar[str] = "Davari & Belilovsky 2023, arXiv:2312.06795"
    elects: ClassVar[bool] = True
