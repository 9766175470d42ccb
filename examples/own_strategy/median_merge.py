"""The median of models, element by element: a merge method outside of merge-models.

    pip install ./examples/own_strategy
    merge-models merge ./a ./b ./c -m median -o ./merged

In Python no installation is needed: ``merge(["a", "b", "c"], Median(), out="merged")``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.strategies.families.blocks import torch_kernel


@dataclass(frozen=True)
class Median(AbstractStrategy):
    """Takes the median of the parents' values in each element, moved towards their mean by ``soften``.

    One parent that went astray does not move it. Of an even number of parents it is the middle two's mean.
    """

    name: ClassVar[str] = "median"

    soften: float = parameter(0.0, "0: the median, 1: the mean", minimum=0, maximum=1)

    def kernel(self, case: Case) -> Kernel:
        return torch_kernel(case, self._combine)

    def _combine(self, block: Block, survey: None) -> Tensor:
        """Merges one block; float32 or wider, as the parents are given here."""
        del survey
        values = torch.stack(block.parents).sort(0).values
        count = len(values)
        median = (values[(count - 1) // 2] + values[count // 2]) / 2
        return torch.lerp(median, values.mean(0), self.soften)
