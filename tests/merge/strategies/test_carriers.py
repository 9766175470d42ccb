"""Every strategy against the Fréchet mean of the manifold that it names: equal, or said why it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from merge_models.manifolds import MANIFOLDS, find_manifold, frechet_mean
from merge_models.merge.strategies import (
    STRATEGIES,
    AbstractStrategy,
    Karcher,
    Linear,
    LogLinear,
    MultiSlerp,
    NuSlerp,
    Passthrough,
    Slerp,
    TaskArithmetic,
    UnitMean,
    Wasserstein,
)
from tests.helpers import merge_states
from tests.merge.strategies.cases import CASES as ROWS

WEIGHTS = (0.5, 0.3, 0.2)


def vectors(count: int, *, norm: float | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    points = [
        shared + 0.4 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(count)
    ]
    return points if norm is None else [norm * point / point.norm() for point in points]


CASES: list[tuple[AbstractStrategy, list[Tensor], tuple[float, ...], float]] = [
    (Linear(weight=WEIGHTS), vectors(3), WEIGHTS, 1e-12),
    (TaskArithmetic(weight=WEIGHTS), vectors(3), WEIGHTS, 1e-12),  # weights that sum to 1 need no base
    (Passthrough(), vectors(1), (1.0,), 0.0),
    (Karcher(weight=WEIGHTS), vectors(3), WEIGHTS, 1e-12),
    (UnitMean(), vectors(2), (0.5, 0.5), 1e-12),  # of two that weigh the same
    (MultiSlerp(), vectors(2), (0.5, 0.5), 1e-12),
    (Slerp(t=0.3), vectors(2, norm=2.0), (0.7, 0.3), 1e-12),  # of equal norms, as coefficients are SLERP's
    (NuSlerp(weight=(0.7, 0.3)), vectors(2, norm=2.0), (0.7, 0.3), 1e-12),
]


@pytest.mark.parametrize(
    ("strategy", "points", "weights", "tolerance"), CASES, ids=lambda c: getattr(c, "name", "")
)
def test_shortcuts_are_the_mean_of_their_carrier(
    strategy: AbstractStrategy, points: list[Tensor], weights: tuple[float, ...], tolerance: float
) -> None:
    base = {"w": vectors(4)[3]} if strategy.base_model.is_required else None
    ours = merge_states([{"w": point} for point in points], strategy, base=base)["w"].flatten()
    manifold = find_manifold(strategy.carrier)()
    lifted = manifold.lift(torch.stack(points).flatten(1))
    shares = torch.tensor(weights, dtype=torch.float64)
    mean = frechet_mean(manifold, lifted.point, shares)
    wanted = manifold.lower(mean.point, shares @ lifted.rest)
    assert bool(mean.converged) and float((ours - wanted).norm() / wanted.norm()) <= tolerance


def test_log_linear_is_the_mean_of_numbers_above_zero() -> None:
    points = [point.abs() + 0.1 for point in vectors(3)]
    ours = merge_states([{"w": point} for point in points], LogLinear(weight=WEIGHTS))["w"]
    numbers = torch.stack(points, -1).reshape(-1, 3, 1, 1)
    mean = frechet_mean(
        find_manifold(LogLinear.carrier)(), numbers, torch.tensor(WEIGHTS, dtype=torch.float64)
    )
    torch.testing.assert_close(ours.flatten(), mean.point.flatten(), rtol=1e-12, atol=0)


def test_rows_of_a_wasserstein_merge_have_the_barycenter_s_covariance() -> None:
    points = [torch.randn(400, 5, generator=torch.Generator().manual_seed(n)).double() @ torch.randn(
        5, 5, generator=torch.Generator().manual_seed(50 + n)).double() for n in range(3)]  # fmt: skip
    ours = merge_states([{"w": p} for p in points], Wasserstein(weight=WEIGHTS, covariance="full"))["w"]
    spread = torch.stack([torch.cov(point.mT, correction=0) for point in points])
    shares = torch.tensor(WEIGHTS, dtype=torch.float64)
    wanted = frechet_mean(find_manifold(Wasserstein.carrier)(), spread, shares).point
    assert float((torch.cov(ours.mT, correction=0) - wanted).norm() / wanted.norm()) < 2e-6  # as documented


def test_every_strategy_names_its_carrier_and_is_its_mean_or_says_why_not() -> None:
    tested = {case[0].name for case in CASES} | {"log_linear", "wasserstein"}
    for strategy in STRATEGIES:
        assert strategy.carrier in MANIFOLDS or strategy.name in ("stochastic", "frechet")
        reasons = [case.no_mean for case in ROWS if type(case.strategy) is strategy and case.no_mean]
        assert len(reasons) == (strategy.name not in tested), strategy.name
    assert math.isclose(sum(WEIGHTS), 1)
