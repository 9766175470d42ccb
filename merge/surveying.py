"""A survey's rounds: what a strategy asks for, and what span strategies do with one Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.kernels.blocks import Span, gram_moments
from merge_models.merge.lazy import LazyModule
from merge_models.merge.plan import TensorPlan, is_fused
from merge_models.merge.strategies.base import AbstractSpanStrategy, Figures, FixedMixture, Mixture, Pass
from merge_models.merge.strategies.near_points import NearGram

if TYPE_CHECKING:
    import torch

    from merge_models.manifolds.span import Gram
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class GramPass(Pass):
    """The survey of span strategies, measured on storage bytes."""

    def moments(self, tensor: TensorPlan, spans: list[Span]) -> tuple[np.ndarray]:
        """A piece's part of it."""
        if tensor.base is not None:
            return (gram_moments(spans[-1], spans[:-1]),)
        return (gram_moments(spans[0], spans[1:]),)


def rounds_of(tensor: TensorPlan, together: int, seed: int) -> Any:
    """The survey of a tensor, or of a whole model of so many elements ``together`` (else 0), as a generator.

    What needs none gives None, or the mixture itself.
    """
    strategy = tensor.strategy
    if strategy is None:
        return None
    if isinstance(strategy, AbstractSpanStrategy) and is_fused(strategy):
        return _span_survey(strategy, tensor)
    return strategy.survey(replace(tensor.spec(seed), together=together))


def figures_of(tensor: TensorPlan, survey: Any, seed: int) -> Figures:
    """What is worth telling of a tensor after its survey."""
    if isinstance(survey, Mixture | FixedMixture):
        return survey.figures
    return tensor.strategy.figures(tensor.spec(seed), survey) if tensor.strategy is not None else {}


def _span_survey(strategy: AbstractSpanStrategy, tensor: TensorPlan) -> Iterator[Pass]:
    mixture = strategy.mixture if tensor.base is None else strategy.mixture_with_base
    if not strategy.needs_gram:
        return mixture(None)
    (moments,) = yield GramPass(measure=lambda block: ())
    near = NearGram.unpacked(moments, len(tensor.parents), tensor.base is not None)
    quick = strategy.quick(near, tensor.base is not None)
    if quick is not None:
        return quick
    return mixture(_gram_of(torch.from_numpy(moments), len(tensor.parents), tensor.base is not None))


def _gram_of(moments: torch.Tensor, count: int, has_base: bool) -> Gram:
    """Unpacks :func:`gram_moments`; without a base the first parent is the reference, at difference 0."""
    from merge_models.manifolds.span import Gram

    measured = count if has_base else count - 1
    cross = torch.zeros(count, dtype=torch.float64)
    differences = torch.zeros(count, count, dtype=torch.float64)
    first = count - measured
    cross[first:] = moments[1 : 1 + measured]
    rows, columns = torch.triu_indices(measured, measured) + first
    differences[rows, columns] = moments[1 + measured :]
    differences[columns, rows] = moments[1 + measured :]
    return Gram(reference=moments[0], cross=cross, differences=differences)
