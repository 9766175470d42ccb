"""SCE: select where parents differ most, calculate their weights by energy, erase the minority's signs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel, Moments, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.span import Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.selection.cuts import EVERYTHING, NOTHING, Cut, Totals
from merge_models.merge.kernels.selection.select import largest, selection_bytes
from merge_models.merge.kernels.task_vectors import norms, variance
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.families.task_vectors import Terms, term_kernel


@dataclass(frozen=True)
class Selection:
    """What a survey found: the cut among variances, and each parent's share of the energy."""

    cut: Cut
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Sce(AbstractStrategy):
    """Keeps the elements on which parents differ most, weights parents by energy, and elects signs.

    Of the elements on which parents differ, the ``int(select_topk * n)`` of largest variance are selected
    (of equal ones, those that come first); parents are weighted by the energy of their task vectors there;
    those of the minority's sign are erased, and the rest averaged. Kernel: variance mask, sign election.
    Carrier: flat space about the base. Source: Wan et al. 2024, "FuseChat" (2408.07990). mergekit gives
    uniform weights where the mean squares sum to less than 1e-6, as those of light fine-tunes do; here
    energies always decide, and weights are equal only where there is no energy at all. Where all parents
    agree nothing is selected: there ``select_topk`` below 1 gives the base, as in mergekit.
    """

    name: ClassVar[str] = "sce"
    source: ClassVar[str] = "Wan et al. 2024, arXiv:2408.07990"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    select_topk: float = parameter(
        1.0, "share of the differing elements to select, those of largest variance", minimum=0, maximum=1
    )

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(
            case, _terms, survey=self._survey, figures=_shares, survey_bytes=partial(selection_bytes, count=1)
        )

    def _survey(self, elements: int) -> Survey:
        cut = EVERYTHING if self.select_topk > 0 else NOTHING
        if 0 < self.select_topk < 1:
            ((cut,),) = yield from largest(1, _variances, self._size, elements)
        (energies,) = yield Pass(_energies, (cut,))
        total = float(energies.sum())
        count = len(energies)
        shares = (energies / total).tolist() if total > 0 else [1 / count] * count
        return Selection(cut, tuple(shares))

    def _size(self, totals: Totals) -> list[list[int]]:
        return [[int(self.select_topk * totals.positive[0])]]


def _terms(block: Block, survey: Selection) -> Terms:
    ones = (1.0,) * len(block.spans)
    mixing = Mixing(Rule.ELECT, ones, survey.shares, survey.shares, normalize=True)
    return _selected(block, survey.cut), mixing


def _shares(survey: Selection) -> Figures:
    return {f"energy share of parent {i}": share for i, share in enumerate(survey.shares)}


def _variances(block: Block) -> tuple[list[Span], None]:
    return [variance(block.spans)], None


def _selected(block: Block, cut: Cut) -> list[Thinned]:
    own = Thinned()
    if cut != EVERYTHING:
        own = Thinned(low=cut.least(block.number), keep=cut.ties(block.number), varied=True)
    return [own] * len(block.spans)


def _energies(block: Block, cut: Cut) -> Moments:
    """Sum of squares of each task vector over the selected elements, NaN and Inf left out."""
    return (norms(block.spans, block.origin, _selected(block, cut), squared=True)[1],)
