"""RAM: what one parent alone has changed is added, what several have changed is averaged."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Kernel, Moments, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.keys import count_shared
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.families.task_vectors import Terms, term_kernel


@dataclass(frozen=True)
class Ram(AbstractStrategy):
    """Adds what one parent alone has changed, and the mean of what several have.

    A parent has changed an element that differs from the base by more than ``epsilon``; what nobody has
    changed is the base's. Kernel: disjoint mean. Carrier: flat space about the base. Source: "Reinforced
    agent merging" (2601.13572). ``epsilon`` is in units of the weights, as mergekit's; 0 counts every
    difference.
    """

    name: ClassVar[str] = "ram"
    source: ClassVar[str] = "Reinforced agent merging, arXiv:2601.13572"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    epsilon: float = parameter(1e-5, "difference up to which an element counts as unchanged", minimum=0)

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(case, self._terms)

    def _terms(self, block: Block, survey: None) -> Terms:
        del survey
        return _changes(block, self.epsilon), Mixing(Rule.SUM, (1.0,) * len(block.spans), normalize=True)


@dataclass(frozen=True)
class RamPlus(AbstractStrategy):
    """As ``ram``, with what one parent alone has changed amplified the more, the more it shares with others.

    Parent i's own changes are multiplied by ``1 + r * min(shared_i / own_i, alpha)``, its counts of shared
    and own changes. Kernel: disjoint mean. Carrier: flat space about the base. Source: "Reinforced agent
    merging" (2601.13572). The paper counts over the whole model (``scope: model``), mergekit, and the default
    here, over each tensor. Of a parent without changes of its own nothing is amplified.
    """

    name: ClassVar[str] = "ramplus_tl"
    source: ClassVar[str] = "Reinforced agent merging, arXiv:2601.13572"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    r: float = parameter(0.1, "strength of the amplification", minimum=0)
    alpha: float = parameter(0.2, "largest ratio of shared to own changes that counts", minimum=0)
    epsilon: float = parameter(1e-5, "difference up to which an element counts as unchanged", minimum=0)
    scope: str = parameter("tensor", "what changes are counted over", choices=("tensor", "model"))

    def kernel(self, case: Case) -> Kernel:
        shared = (self.epsilon,) if self.scope == "model" else None
        return term_kernel(case, self._terms, survey=self._survey, shared=shared, figures=self._figures)

    def _survey(self, elements: int) -> Survey:
        del elements
        (counts,) = yield Pass(_counts, (self.epsilon,))
        shared, own = counts.tolist()
        return tuple(s / o if o else 0.0 for s, o in zip(shared, own, strict=True))

    def _terms(self, block: Block, survey: Sequence[float]) -> Terms:
        ones = (1.0,) * len(block.spans)
        mixing = Mixing(Rule.ALONE, ones, extra=self._factors(survey), normalize=True)
        return _changes(block, self.epsilon), mixing

    def _figures(self, survey: Sequence[float]) -> Figures:
        return {f"amplification of parent {i}": factor for i, factor in enumerate(self._factors(survey))}

    def _factors(self, ratios: Sequence[float]) -> tuple[float, ...]:
        """What each parent's own changes are multiplied by, given its ratio of shared to own ones."""
        return tuple(1 + self.r * min(ratio, self.alpha) for ratio in ratios)


def _counts(block: Block, epsilon: float) -> Moments:
    return (count_shared(block.spans, block.origin, _key(epsilon)),)


def _changes(block: Block, epsilon: float) -> list[Thinned]:
    return [Thinned(low=_key(epsilon) + 1)] * len(block.spans)


def _key(number: float) -> int:
    return struct.unpack("<i", struct.pack("<f", number))[0]
