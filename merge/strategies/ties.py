"""TIES: trim each task vector to its largest elements, elect signs, average those that agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.kernels.selection.cuts import EVERYTHING, NOTHING, Cut
from merge_models.merge.kernels.selection.select import selection_bytes
from merge_models.merge.strategies.families.task_vectors import (
    AbstractTaskVectors,
    Terms,
    added_norms,
    ratios,
    term_kernel,
)
from merge_models.merge.strategies.families.trimming import cuts_by_density, magnitude, trim, trimmed


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

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(
            case,
            self._terms,
            survey=self._survey,
            shared=(self.density, self.rescale) if self.scope == "model" else None,
            figures=_thresholds,
            survey_bytes=self._survey_bytes,
        )

    def _survey(self, elements: int) -> Survey:
        assert isinstance(self.density, tuple)
        cuts = yield from cuts_by_density(self.density, elements)
        factors = (1.0,) * len(cuts)
        if self.rescale == "l1" and any(0 < density < 1 for density in self.density):
            (norms,) = yield Pass(added_norms, (trimmed, (cuts,)))
            factors = ratios(norms)
        return Trims(cuts, factors)

    def _survey_bytes(self, elements: int) -> int:
        return selection_bytes(elements, len(self.weights))

    def _terms(self, block: Block, survey: Trims) -> Terms:
        pairs = zip(survey.cuts, survey.factors, strict=True)
        return [trim(cut, block, factor) for cut, factor in pairs], self.mixing


def _thresholds(survey: Trims) -> Figures:
    cuts = {i: cut for i, cut in enumerate(survey.cuts) if cut not in (EVERYTHING, NOTHING)}
    return {f"threshold of parent {i}": magnitude(cut.key) for i, cut in cuts.items()}
