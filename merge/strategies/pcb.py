"""PCB: parents compete for each element by how much it matters to them and how well it fits the others."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from merge_models.merge.kernels.blocks import Span
from merge_models.merge.strategies.base import (
    AbstractStrategy,
    BaseModel,
    Block,
    Survey,
    TensorSpec,
)
from merge_models.merge.strategies.cuts import Cut, Totals
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.select import largest
from merge_models.merge.strategies.ties import deltas_of

_TAIL = 1e-4
"""Share of each task vector's elements at either end whose size is clamped."""


@dataclass(frozen=True)
class Ranges:
    """What a survey found, for each parent: the range of sizes, and of the scores that count."""

    sizes: tuple[tuple[float, float], ...]
    scores: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Pcb(AbstractStrategy):
    """Averages task vectors, each element weighted by how much it matters to its parent and fits the others.

    Parent i's score is ``exp(N s^2) * tanh(t_i * sum_j t_j)`` with the size ``s`` of ``t_i`` scaled to
    [0, 1]; the best ``ratio`` of each parent's scores, scaled to [0, 1], weight the mean. The sizes'
    extreme 0.01% are clamped. Kernel: competition. Carrier: flat space about the base. Source: Du et al.
    2024, "Parameter competition balancing" (2410.02396), in the form of the authors' program, over the
    whole model (``scope: model``) or each tensor. Scores below zero never count.
    """

    name: ClassVar[str] = "pcb"
    source: ClassVar[str] = "Du et al. 2024, arXiv:2410.02396"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their mean")
    ratio: float = parameter(0.1, "share of each parent's scores that count, the best", above=0, maximum=1)
    scope: str = parameter("model", "what sizes and scores are compared over", choices=("tensor", "model"))

    @property
    def survey_group(self) -> tuple[Any, ...] | None:
        return (self.ratio,) if self.scope == "model" else None

    def survey(self, spec: TensorSpec) -> Survey:
        del spec
        assert isinstance(self.weight, tuple)
        parents = range(len(self.weight))
        found = yield from largest(len(parents), partial(deltas_of, parents), self._size_ranks)
        sizes = tuple((_number(low), _number(high)) for low, high in found)
        found = yield from largest(
            len(parents), lambda block: (_scored(block, sizes), None), self._score_ranks
        )
        return Ranges(sizes, tuple((_number(least), _number(most)) for least, most in found))

    def combine(self, block: Block, survey: Ranges) -> Tensor:
        assert isinstance(self.weight, tuple) and block.base is not None
        deltas = block.deltas()
        total = torch.zeros(deltas[0].shape, dtype=torch.float64)
        scale = torch.zeros_like(total)
        for delta, score, weight, sizes, (least, most) in zip(
            deltas, _scores(deltas, survey.sizes), self.weight, survey.sizes, survey.scores, strict=True
        ):
            share = (score - least).div_(most - least) if most > least else (score >= least).to(score.dtype)
            share.clamp_(min=0.0)
            share.masked_fill_(score <= 0, 0.0)
            clamped = delta.abs().clamp_(*sizes).copysign_(delta)
            total += clamped.double().mul_(share).mul_(weight)
            scale += share
        total.mul_(self.lambda_).div_(torch.where(scale > 0, scale, 1.0))
        return total.add_(block.base)

    def _size_ranks(self, totals: Totals) -> list[list[int]]:
        n = totals.elements
        low, high = n - int(n * _TAIL), n - max(int(n * (1 - _TAIL)) - 1, 0)
        return [[low, high]] * len(totals.positive)

    def _score_ranks(self, totals: Totals) -> list[list[int]]:
        return [[max(1, math.ceil(self.ratio * totals.elements)), 1]] * len(totals.positive)


def _number(cut: Cut) -> float:
    return struct.unpack("<f", struct.pack("<i", max(cut.key, 0)))[0]


def _scored(block: Block, sizes: Sequence[tuple[float, float]]) -> list[Span]:
    return [Span.of(score) for score in _scores(block.deltas(), sizes)]


def _scores(deltas: Sequence[Tensor], sizes: Sequence[tuple[float, float]]) -> list[Tensor]:
    """Scores of each parent, negative ones as 0; divided by exp(N), which changes no comparison."""
    whole = torch.zeros(deltas[0].shape, dtype=torch.float64)
    for delta in deltas:
        whole += delta
    whole = whole.to(deltas[0].dtype)
    scores = []
    for delta, (low, high) in zip(deltas, sizes, strict=True):
        size = delta.abs().clamp_(low, high).sub_(low)
        if high > low:
            size.div_(high - low)
        own = size.square_().sub_(1).mul_(len(deltas)).exp_()
        scores.append((delta * whole).tanh_().mul_(own).clamp_(min=0.0))
    return scores
