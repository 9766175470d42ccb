"""Means that lie in the span of their points: coefficients from one Gram matrix, then a weighted sum.

Every mean that respects isometries is of this kind (``manifolds.span``), so that is all that has to be known
of a tensor, whatever its size. The sum goes from storage bytes to storage bytes, with float64 sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Grain, Kernel, Mixer, Moments, Output, Pass, Survey
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.blocks import gram_moments, weighted_sum
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families.blocks import is_narrow, torch_kernel
from merge_models.merge.strategies.families.near_gram import NearGram

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models.manifolds.span import Gram
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Mixture:
    """Coefficients of a merge that lies in the span of its points: ``sum_i parents[i] x_i + base * x_0``.

    Attributes:
        parents: float64 ``[..., N]``, batched like the Gram matrix that it was made from.
        base: float64 ``[...]``, or None where the base has no part.
        figures: what is worth telling.
    """

    parents: Tensor
    base: Tensor | None = None
    figures: Figures = dataclasses.field(default_factory=dict)

    def fixed(self) -> FixedMixture:
        """Returns the same coefficients of one tensor as plain numbers."""
        base = 0.0 if self.base is None else float(self.base)
        return FixedMixture(tuple(self.parents.tolist()), base, self.figures)


@dataclass(frozen=True)
class FixedMixture:
    """Coefficients as plain numbers, one a parent and the base's.

    Attributes:
        parents: of the parents.
        base: of the base.
        figures: what is worth telling.
    """

    parents: tuple[float, ...]
    base: float = 0.0
    figures: Figures = dataclasses.field(default_factory=dict)


GramRule = Callable[["Gram", bool], Mixture]
"""From points' Gram data, batched, and whether they are about a base (else about the first parent)."""

QuickRule = Callable[[NearGram, bool], FixedMixture | None]
"""The same for one tensor without torch, where nothing is degenerate; None: ask the general rule."""


def fixed_kernel(case: Case, mixture: FixedMixture) -> Kernel:
    """Makes a kernel of coefficients that no geometry decides."""
    return Kernel(
        partial(_write_constant, mixture), (case.result,), refuses_nonfinite=False, uses_torch=False,
        bytes_per_element=4,
    )  # fmt: skip


def span_kernel(case: Case, rule: GramRule, quick: QuickRule | None = None) -> Kernel:
    """Makes a kernel of one point per tensor.

    Args:
        case: the task.
        rule: coefficients from the points' Gram data.
        quick: the same without torch, where it can.
    """
    return Kernel(
        _write_mixture,
        (case.result,),
        survey=partial(_survey, rule, quick, len(case.inputs.parents), case.has_base),
        figures=_figures,
        refuses_nonfinite=False,
        uses_torch=not is_narrow(case),
        bytes_per_element=4,
        warm_up=partial(_warm_up, rule, len(case.inputs.parents)),
    )


def row_kernel(case: Case, rule: GramRule, **more: Any) -> Kernel:
    """Makes a kernel of one point per row, each with its own coefficients.

    Args:
        case: the task.
        rule: coefficients from Gram data, a batch of rows.
        **more: further fields of :class:`Kernel`; a survey that returns a :class:`Mixture` decides instead.
    """
    warm_up = partial(_warm_up, rule, len(case.inputs.parents))
    return torch_kernel(case, partial(_mix_rows, rule), grain=Grain.ROW, warm_up=warm_up, **more)


def gram_pass(block: Block) -> Moments:
    """Returns :func:`gram_moments` about the base, or about the first parent where there is no base."""
    if block.base_span is not None:
        return (gram_moments(block.base_span, block.spans),)
    return (gram_moments(block.spans[0], block.spans[1:]),)


def _survey(rule: GramRule, quick: QuickRule | None, count: int, has_base: bool, elements: int) -> Survey:
    del elements
    (moments,) = yield Pass(gram_pass)
    near = NearGram.unpacked(moments, count, has_base)
    mixture = quick(near, has_base) if quick is not None else None
    return mixture or rule(_general(near), has_base).fixed()


def _general(near: NearGram) -> Gram:
    """The same Gram data for the general rule."""
    from merge_models.manifolds.span import Gram

    return Gram(
        torch.tensor(near.reference, dtype=torch.float64),
        torch.from_numpy(near.cross),
        torch.from_numpy(near.differences),
    )


def _warm_up(rule: GramRule, count: int) -> None:
    """Loads what a rule uses, by points that are not near each other."""
    from merge_models.manifolds.span import Gram

    one, zeros = torch.ones((), dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    rule(Gram(one, zeros, torch.eye(count, dtype=torch.float64)), False)


def _figures(survey: FixedMixture) -> Figures:
    return survey.figures


def _write_constant(mixture: FixedMixture, block: Block, survey: Any, outputs: Sequence[Output]) -> int:
    del survey
    return outputs[0].fill(_mixer(mixture, block))


def _write_mixture(block: Block, survey: FixedMixture, outputs: Sequence[Output]) -> int:
    return outputs[0].fill(_mixer(survey, block))


def _mixer(mixture: FixedMixture, block: Block) -> Mixer:
    sources, weights = [*block.spans], [*mixture.parents]
    if block.base_span is not None:
        sources.append(block.base_span)
        weights.append(mixture.base)

    def mix(out: Span) -> int:
        return weighted_sum([source.first(out.count) for source in sources], weights, out)

    return mix


def _mix_rows(rule: GramRule, block: Block, survey: Mixture | None) -> Tensor:
    from merge_models.merge.kernels.mixing import mix, row_gram

    mixture = survey
    if mixture is None:
        reference = block.stored[0] if block.stored_base is None else block.stored_base
        mixture = rule(row_gram(block.stored, reference), block.stored_base is not None)
    return mix(block.stored, mixture.parents, block.stored_base, mixture.base)
