"""Distances between next-token distributions: exactly 0 where they are equal, and stable near it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distributions:
    """Rows of probabilities, [n, vocabulary], by their logarithms; sums are taken in float64."""

    log: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Distributions:
        return cls(torch.log_softmax(logits, -1))

    @cached_property
    def p(self) -> Tensor:
        return self.log.exp()

    @cached_property
    def root(self) -> Tensor:
        """Square roots of the probabilities."""
        return (self.log / 2).exp_()

    def mean(self, values: Tensor) -> Tensor:
        """Expectation of each row's values, [n], float64; 0 times infinity is 0."""
        terms = self.p * values
        total = terms.sum(-1, dtype=torch.float64)
        if not torch.isfinite(total).all():
            total = torch.where(self.p == 0, torch.zeros_like(terms), terms).sum(-1, dtype=torch.float64)
        return total


def entropy(p: Distributions) -> Tensor:
    """Entropy of each row, nats."""
    return -p.mean(p.log)


def kl(p: Distributions, q: Distributions) -> Tensor:
    """KL(p || q) of each row, nats."""
    return p.mean(p.log - q.log).clamp_min(0)


def js(p: Distributions, q: Distributions) -> Tensor:
    """Jensen-Shannon divergence of each row, nats, from 0 to ln 2.

    With d = log q - log p the mixture m has log m = log p + log((1 + e^d) / 2); the last term is taken as
    log1p(expm1(-|d|) / 2) + max(d, 0), which does not cancel for small d.
    """
    difference = q.log - p.log
    above = difference.abs().neg_().expm1_().div_(2).log1p_().add_(difference.clamp_min(0))
    total = q.mean(difference - above) - p.mean(above)
    return (total / 2).clamp(0, math.log(2))


def fisher_rao(p: Distributions, q: Distributions) -> Tensor:
    """2 arccos(sum sqrt(p q)) of each row, from 0 to pi.

    Taken as 4 arcsin(||sqrt p - sqrt q|| / 2): arccos would lose half of the digits near 1.
    """
    chord = (p.root - q.root).square_().sum(-1, dtype=torch.float64).sqrt()
    return 4 * torch.asin((chord / 2).clamp(max=math.sqrt(0.5)))


def agreement(p: Distributions, q: Distributions) -> Tensor:
    """Whether the most likely token is the same, 1 or 0."""
    return (p.log.argmax(-1) == q.log.argmax(-1)).double()


def loss(p: Distributions, labels: Tensor) -> Tensor:
    """Cross-entropy of what followed, nats."""
    return -p.log.gather(-1, labels[:, None]).squeeze(-1).double()
