"""The numpy coefficients of near points against the general ones, and where they are not for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from merge_models.manifolds import Gram
from merge_models.merge.strategies import Karcher, ModelStock, MultiSlerp, NormMean, NuSlerp, Slerp, UnitMean
from merge_models.merge.strategies.families.near_points import NearGram
from merge_models.merge.strategies.families.span import FixedMixture, Mixture

CASES: list[tuple[Any, int, bool]] = [
    (Karcher(), 3, False),
    (Karcher(weight=(0.6, 0.3, 0.1)), 3, False),
    (Karcher(origin="base"), 3, True),
    (UnitMean(weight=(1.0, 2.0)), 2, False),
    (NormMean(weight=(1.0, 0.0, 3.0)), 3, False),
    (Slerp(t=0.3), 2, False),
    (NuSlerp(weight=(1.0, 2.0)), 2, False),
    (NuSlerp(weight=(1.0, 2.0)), 2, True),
    (MultiSlerp(weight=(0.5, 0.3, 0.2)), 3, False),
    (MultiSlerp(weight=(0.5, 0.3, 0.4), normalize_weights=False), 3, True),
    (ModelStock(), 4, True),
]


def grams(count: int, spread: float, has_base: bool) -> tuple[NearGram, Gram]:
    """The same data for both: points ``spread`` apart; task vectors (with a base) that agree as much."""
    generator = torch.Generator().manual_seed(count)
    common, *own = torch.randn(count + 1, 4000, generator=generator, dtype=torch.float64)
    norms = np.linspace(0.9, 1.1, count)
    points = torch.stack([(common + spread * x) * n for x, n in zip(own, norms, strict=True)])
    reference = common if has_base else points[0]
    if has_base:
        points = reference + 0.01 * points
    gram = Gram.from_points(points, reference)
    return NearGram(float(gram.reference), gram.cross.numpy(), gram.differences.numpy()), gram


def general(strategy: Any, gram: Gram, has_base: bool) -> tuple[list[float], float]:
    found = strategy.mixture(gram, has_base)
    assert isinstance(found, Mixture)
    return found.parents.tolist(), 0.0 if found.base is None else float(found.base)


@pytest.mark.parametrize("spread", [1e-7, 1e-3, 0.05, 0.5])
@pytest.mark.parametrize(("strategy", "count", "has_base"), CASES)
def test_quick_coefficients_are_the_general_ones(
    strategy: Any, count: int, has_base: bool, spread: float
) -> None:
    strategy = strategy.resolved(count)
    near, gram = grams(count, spread, has_base)
    quick = strategy.quick(near, has_base)
    assert isinstance(quick, FixedMixture)
    parents, base = general(strategy, gram, has_base)
    assert quick.parents == pytest.approx(parents, rel=0, abs=2e-13)
    assert quick.base == pytest.approx(base, rel=0, abs=2e-13)
    assert quick.figures.keys() == (strategy.mixture(gram).figures or quick.figures).keys()


@pytest.mark.parametrize("strategy", [Karcher(), UnitMean(), NormMean(), MultiSlerp()])
@pytest.mark.parametrize("what", ["far", "zero", "nan"])
def test_degenerate_points_are_left_to_the_general_code(strategy: Any, what: str) -> None:
    first = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = {"far": -first.roll(1), "zero": 0 * first, "nan": first * float("nan")}[what]
    gram = Gram.from_points(torch.stack([first, second]))
    near = NearGram(float(gram.reference), gram.cross.numpy(), gram.differences.numpy())
    assert strategy.resolved(2).quick(near, False) is None


def test_an_iteration_that_is_cut_short_is_left_to_the_general_code() -> None:
    near, _ = grams(3, 0.5, False)
    assert Karcher(weight=(0.6, 0.3, 0.1), max_iter=1).resolved(3).quick(near, False) is None


def test_moments_are_unpacked_in_the_kernels_order() -> None:
    moments = np.arange(1.0, 7.0)  # |r|^2; <r, d_1>, <r, d_2>; d_1 d_1, d_1 d_2, d_2 d_2
    gram = NearGram.unpacked(moments, 3, has_base=False)
    assert gram.reference == 1.0 and gram.cross.tolist() == [0, 2, 3]
    assert gram.differences.tolist() == [[0, 0, 0], [0, 4, 5], [0, 5, 6]]
    assert NearGram.unpacked(moments, 2, has_base=True).differences.tolist() == [[4, 5], [5, 6]]
