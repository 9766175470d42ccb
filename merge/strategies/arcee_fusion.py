"""Arcee Fusion: take from a parent only its most important changes to the base."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_models.merge.kernels.blocks import Span
from merge_models.merge.strategies.base import (
    AbstractStrategy,
    BaseModel,
    Block,
    Figures,
    Grain,
    Moments,
    Pass,
    Survey,
    TensorSpec,
)
from merge_models.merge.strategies.cuts import Totals
from merge_models.merge.strategies.select import largest

_FLOOR = 1e-8
"""Added to every probability of a run, as the method has it."""

_LARGEST = 700.0
"""Changes beyond it are as important as it is: their exponentials are not representable."""

_LONG = 256
"""Divergences of runs as long as this are kept from the first round on; others are not worth their memory."""


@dataclass(frozen=True)
class Importances:
    """What a survey found: every run's divergence, if kept, and from which importance changes are taken."""

    divergences: Tensor | None
    threshold: float


@dataclass(frozen=True)
class ArceeFusion(AbstractStrategy):
    """Takes from the parent its most important changes, and leaves the rest as in the base.

    An element's importance is the size of its change times the divergence ``KL(softmax(parent) ||
    softmax(base))`` of the run along the last dimension that it is in; taken are those of at least median +
    1.5 interquartile ranges over the tensor. Kernel: threshold mask. Carrier: flat space about the base.
    Source: Arcee's mergekit. Quartiles are exact here; mergekit estimates those of tensors above a million
    elements from a random sample, unseeded, and writes the result in float32 whatever the models' dtype.
    """

    name: ClassVar[str] = "arcee_fusion"
    source: ClassVar[str] = "Arcee 2024, mergekit"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    base_is_mixed: ClassVar[bool] = True
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    @property
    def grain(self) -> Grain:
        return Grain.ROW

    def survey(self, spec: TensorSpec) -> Survey:
        divergences = None
        if _run_length(spec) >= _LONG:
            (divergences,) = yield Pass(_all_divergences)
        ((low, middle, high),) = yield from largest(
            1, lambda block: ([Span.of(_importances(block, divergences))], None), _quartile_sizes
        )
        quartiles = [struct.unpack("<f", struct.pack("<i", cut.key))[0] for cut in (low, middle, high)]
        return Importances(divergences, quartiles[1] + 1.5 * (quartiles[2] - quartiles[0]))

    def combine(self, block: Block, survey: Importances) -> Tensor:
        (parent,), base = block.parents, block.base
        assert base is not None
        taken = _importances(block, survey.divergences) >= survey.threshold
        return torch.where(taken, parent, base)

    def figures(self, spec: TensorSpec, survey: Importances) -> Figures:
        del spec
        return {"threshold": survey.threshold}


def _quartile_sizes(totals: Totals) -> list[list[int]]:
    last = totals.elements - 1
    return [[totals.elements - int(quarter * last) for quarter in (0.25, 0.5, 0.75)]]


def _run_length(spec: TensorSpec) -> int:
    return spec.shape[-1] if spec.shape else 1


def _runs(block: Block, values: Tensor) -> Tensor:
    """``[runs, length]``: the runs along the tensor's last dimension."""
    return values.reshape(-1, _run_length(block.spec))


def _all_divergences(block: Block) -> Moments:
    """This block's part of every run's divergence: float64 ``[runs of the tensor]``."""
    length = _run_length(block.spec)
    spread = torch.zeros(block.spec.count // length, dtype=torch.float64)
    own = _divergences(block)
    first = block.start // length
    spread[first : first + len(own)] = own
    return (spread,)


def _divergences(block: Block) -> Tensor:
    """Each run's ``KL(softmax(parent) + floor || softmax(base) + floor)``, as a sum of positive terms.

    With ``q`` the base's probabilities and ``e = exp(parent - base) - 1``, the parent's are ``q (1 + r)``,
    ``r = (e - sum q e) / (1 + sum q e)``: no difference of nearly equal numbers is taken.
    """
    assert block.stored_base is not None
    base = _runs(block, block.stored_base).double()
    growth = (_runs(block, block.stored[0]).double() - base).clamp_(max=_LARGEST).expm1_()
    shares = base.softmax(-1)
    mean = (shares * growth).sum(-1, keepdim=True)
    change = growth.sub_(mean).div_(1 + mean).mul_(shares)
    shares += _FLOOR
    change /= shares
    return shares.mul_((1 + change) * change.log1p() - change).sum(-1)


def _importances(block: Block, divergences: Tensor | None) -> Tensor:
    (parent,), base = block.parents, block.base
    assert base is not None
    change = _runs(block, parent.sub(base).abs_())
    first = block.start // change.shape[-1]
    own = _divergences(block) if divergences is None else divergences[first : first + len(change)]
    return change.double().mul_(own.unsqueeze(-1)).float().view(parent.shape)
