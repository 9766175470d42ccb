"""Next-token distributions by their logarithms: distances are exactly 0 where they are equal, and stable near
it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Distributions:
    """Rows of probabilities, [n, vocabulary], by their logarithms; sums are taken in float64."""

    log: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Distributions:
        """Returns the distributions of logits [n, vocabulary]."""
        return cls(logits.log_softmax(-1))

    @cached_property
    def p(self) -> Tensor:
        """The probabilities."""
        return self.log.exp()

    @cached_property
    def root(self) -> Tensor:
        """Square roots of the probabilities."""
        return (self.log / 2).exp_()

    def mean(self, values: Tensor) -> Tensor:
        """Returns the expectation of each row's values, [n], float64; 0 times infinity is 0."""
        import torch

        terms = self.p * values
        total = terms.sum(-1, dtype=torch.float64)
        if not torch.isfinite(total).all():
            total = torch.where(self.p == 0, torch.zeros_like(terms), terms).sum(-1, dtype=torch.float64)
        return total
