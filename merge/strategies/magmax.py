"""MagMax: of each element's task vectors the largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_models.merge.kernels.task_vectors import Thinned, elected_sum
from merge_models.merge.strategies.base import AbstractStrategy, BaseModel, Block
from merge_models.merge.strategies.parameters import parameter


@dataclass(frozen=True)
class MagMax(AbstractStrategy):
    """Adds to each element of the base the task vector that is the largest there.

    Weights scale task vectors before they are compared; of two that differ in sign only, the positive one is
    taken. Kernel: maximum magnitude. Carrier: flat space about the base. Source: Marczak et al. 2024,
    "MagMax" (2407.06322).
    """

    name: ClassVar[str] = "magmax"
    aliases: ClassVar[tuple[str, ...]] = ("max_abs",)
    source: ClassVar[str] = "Marczak et al. 2024, arXiv:2407.06322"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their maximum")

    def combine(self, block: Block, survey: None) -> Tensor:
        del survey
        assert isinstance(self.weight, tuple) and block.stored_base is not None
        if all(weight == 1 for weight in (*self.weight, self.lambda_)):
            return _farthest(block)
        base = block.stored_base.double()
        terms = [(x.double() - base).mul_(w) for x, w in zip(block.stored, self.weight, strict=True)]
        best = terms[0].clone()
        for term in terms[1:]:
            larger = (term.abs() > best.abs()) | ((term.abs() == best.abs()) & (term > best))
            best = torch.where(larger, term, best)
        masks, left = [], torch.ones(best.shape, dtype=torch.bool)
        for term in terms:
            chosen = (term == best) & left
            left &= ~chosen
            masks.append(Thinned(scale=chosen.float()))
        return elected_sum(
            block.stored,
            block.stored_base,
            masks,
            self.weight,
            elect=False,
            normalize=False,
            scale=self.lambda_,
        )


def _farthest(block: Block) -> Tensor:
    """The parent farthest from the base in each element: the highest or the lowest."""
    assert block.base is not None
    first, *others = block.parents
    highest, lowest = first.clone(), first
    for parent in others:
        torch.maximum(highest, parent, out=highest)
        torch.minimum(lowest, parent, out=lowest)
    above = highest.double() - block.base >= block.base - lowest.double()
    return torch.where(above, highest, lowest)
