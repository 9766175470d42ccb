"""NearSwap: move the base towards a second model, by at most t in each element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.families.task_vectors import Terms, term_kernel


@dataclass(frozen=True)
class NearSwap(AbstractStrategy):
    """Moves each element of the base towards the parent's, by at most ``t``: near ones swap, far ones stay.

    That is the weight ``min(1, t / |parent - base|)`` of the method's author, in closed form. Kernel: clamp.
    Carrier: flat space about the base. Source: alchemonaut, "QuartetAnemoi-70B". mergekit's weight takes
    differences under 1e-6 for 1e-6, which changes anything only if ``t`` is smaller than that.
    """

    name: ClassVar[str] = "nearswap"
    source: ClassVar[str] = "alchemonaut 2024, huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001"
    base_model: ClassVar[BaseModel] = BaseModel.MIXED
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    t: float = parameter(0.0001, "the largest move of an element", minimum=0)

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(case, self._terms)

    def _terms(self, block: Block, survey: None) -> Terms:
        del block, survey
        return [Thinned(move=self.t)], Mixing(Rule.SUM, (1.0,))
