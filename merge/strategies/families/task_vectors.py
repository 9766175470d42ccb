"""Sums of thinned task vectors, with or without a vote on each element's sign: what TIES' kin share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel, Mixer, Moments
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.span import Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.task_vectors import mix_into, norms
from merge_models.merge.kernels.terms import Mixing, Rule, Thinned
from merge_models.merge.strategies.families.blocks import mixing_kernel
from merge_models.merge.strategies.families.weights import NOT_DIVIDED, divisor_of, is_zero_sum

Terms = tuple[Sequence[Thinned], Mixing]
"""What is left of each parent's task vector in a block, and how that becomes one."""


def term_kernel(case: Case, terms: Callable[[Block, Any], Terms], **more: Any) -> Kernel:
    """Makes a kernel that adds a sum of thinned task vectors to the base.

    Args:
        case: the task.
        terms: from a block and what the survey returned to what is left of its task vectors.
        **more: further fields of :class:`Kernel`.
    """
    return mixing_kernel(case, partial(_mixer, terms), **more)


def _mixer(terms: Callable[[Block, Any], Terms], block: Block, survey: Any) -> Mixer:
    thinned, mixing = terms(block, survey)

    def mix(out: Span) -> int:
        count, place = out.count, out
        if block.columns and count % block.columns:
            # What is left of an element may depend on the whole row.
            count = -(-count // block.columns) * block.columns
            place = Span(np.empty(count * out.dtype.size, np.uint8), out.dtype)
        parents = [span.first(count) for span in block.spans]
        flags = mix_into(parents, block.origin.first(count), thinned, mixing, place)
        if place is not out:
            out.data[:] = place.data[: out.data.nbytes]
        return flags

    return mix


@dataclass(frozen=True)
class AbstractTaskVectors(AbstractStrategy):
    """``base + lambda * sum_i w_i t_i`` of task vectors ``t_i`` that a subclass thins out.

    With ``elects``, an element's sum takes the parents whose ``w_i t_i`` has the sign of the whole sum there
    (a sum of zero counts as positive), and ``normalize`` divides it by the weights of those. Products and
    sums are float64, rounded once; a sign is not decided by rounding noise, so neither is it by the order
    of the parents.
    """

    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    elects: ClassVar[bool]

    weight: float | tuple[float, ...] = parameter(1.0, "scale of each task vector", per_model=True)
    lambda_: float = parameter(1.0, "scale of their sum")
    normalize: bool = parameter(False, "divide the sum by the weights of the parents in it")

    @property
    def remark(self) -> str:
        divides = self.normalize and not self.elects
        return NOT_DIVIDED if divides and is_zero_sum(self.weights) else ""

    @property
    def weights(self) -> tuple[float, ...]:
        """The parents' weights, of a resolved strategy."""
        assert isinstance(self.weight, tuple)
        return self.weight

    @property
    def mixing(self) -> Mixing:
        """How what is left of the task vectors becomes one."""
        whole = divisor_of(self.weights) if self.normalize and not self.elects else 1.0
        return Mixing(
            Rule.ELECT if self.elects else Rule.SUM,
            self.weights,
            self.weights,
            normalize=self.normalize and self.elects,
            scale=self.lambda_ / whole,
        )


def added_norms(block: Block, terms: Callable[..., Sequence[Thinned]], arguments: tuple[Any, ...]) -> Moments:
    """Returns the pass that ``ratios`` needs: L1 norms of each parent's task vector, whole and thinned.

    They are float64 ``[2, N]``; NaN and Inf are left out. ``terms(block, *arguments)`` thins.
    """
    return (norms(block.spans, block.origin, terms(block, *arguments)),)


def ratios(sums: np.ndarray) -> tuple[float, ...]:
    """Returns what gives thinned task vectors their L1 norm back; 1 where nothing was left to scale."""
    whole, thinned = sums.tolist()
    return tuple(a / b if b > 0 else 1.0 for a, b in zip(whole, thinned, strict=True))
