"""Consensus: keep the elements of the merged task vector that matter to several parents."""

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
class Consensus(AbstractStrategy):
    """Adds the weighted sum of task vectors to the base, but only where it matters to at least ``k`` parents.

    With the sum ``t``, an element matters to parent i where ``|t_i| >= mask_lambda_i |t - t_i|`` (its TALL
    mask). Kernel: consensus mask. Carrier: flat space about the base. Source: Wang et al. 2024, "Localizing
    task information for improved model merging and compression" (2405.07813), which chooses each
    ``mask_lambda`` from 0.2 to 0.6 by validation, ``k: 2``, and ``lambda`` as in task arithmetic.
    """

    name: ClassVar[str] = "consensus"
    source: ClassVar[str] = "Wang et al. 2024, arXiv:2405.07813"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their sum")
    mask_lambda: float | tuple[float, ...] = parameter(
        0.4, "how large a parent's own part must be against that of all others", per_model=True, minimum=0
    )
    k: int = parameter(2, "to how many parents an element must matter (to all, if they are fewer)", minimum=1)

    def kernel(self, case: Case) -> Kernel:
        return term_kernel(case, self._terms)

    def _terms(self, block: Block, survey: None) -> Terms:
        del survey
        assert isinstance(self.weight, tuple) and isinstance(self.mask_lambda, tuple)
        count = len(block.spans)
        mixing = Mixing(
            Rule.CONSENSUS,
            self.weight,
            extra=self.mask_lambda,
            enough=min(self.k, count),
            scale=self.lambda_,
        )
        return [Thinned()] * count, mixing
