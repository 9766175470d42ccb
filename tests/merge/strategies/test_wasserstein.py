"""Wasserstein barycenters: moments of rows against POT and closed forms."""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch import Tensor

from merge_models.merge.contract.block import Block
from merge_models.merge.strategies import AbstractStrategy, Linear, Wasserstein, wasserstein
from tests.helpers import merge_states

WEIGHTS = (0.5, 0.3, 0.2)
Array = NDArray[np.float64]


def family(
    count: int = 3, size: tuple[int, ...] = (40, 6), spread: float = 0.5, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator, dtype=torch.float64)
    apart = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [base, *(base + spread * each for each in apart)]


def merged(
    points: list[Tensor], strategy: AbstractStrategy, base: Tensor | None = None, **options: Any
) -> Tensor:
    held = None if base is None else {"w": base}
    return merge_states([{"w": point} for point in points], strategy, base=held, **options)["w"]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moments(x: Array) -> tuple[Array, Array]:
    return x.mean(0), np.cov(x, rowvar=False, bias=True)


def root(matrix: Array) -> Array:
    return np.real(cast(Array, sqrtm(matrix)))


def barycenter(covariances: list[Array], weights: tuple[float, ...]) -> Array:
    """papers.md d.4, Álvarez-Esteban's fixed point."""
    s = cast(Array, sum(w * c for w, c in zip(weights, covariances, strict=True)))
    for _ in range(500):
        half = root(s)
        inner = cast(Array, sum(w * root(half @ c @ half) for w, c in zip(weights, covariances, strict=True)))
        inverse = np.linalg.inv(half)
        s = inverse @ inner @ inner @ inverse
    return s


class TestWasserstein:
    @pytest.mark.parametrize("origin", ["zero", "base"])
    def test_diagonal_restores_the_deviation_of_columns(self, origin: str) -> None:
        base, *points = family(size=(3000, 200), spread=1.0)
        centre = base if origin == "base" else torch.zeros_like(base)
        ours = merged(points, Wasserstein(weight=WEIGHTS, origin=origin), base) - centre
        rows = torch.stack([p - centre for p in points])
        wanted = sum(w * s for w, s in zip(WEIGHTS, rows.std(1, correction=0), strict=True))
        mean = cast(Tensor, sum(w * x for w, x in zip(WEIGHTS, rows, strict=True)))
        torch.testing.assert_close(ours.std(0, correction=0), wanted, rtol=1e-11, atol=0)
        torch.testing.assert_close(ours.mean(0), mean.mean(0), rtol=0, atol=1e-13)
        stretch = wanted / mean.std(0, correction=0)
        assert 1.1 < float(stretch.mean()) < 1.8
        torch.testing.assert_close(ours, mean.mean(0) + (mean - mean.mean(0)) * stretch, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("origin", ["zero", "base"])
    def test_full_against_scipy(self, origin: str) -> None:
        base, *points = family(spread=0.7)
        centre = base if origin == "base" else torch.zeros_like(base)
        rows = [(p - centre).numpy() for p in points]
        mean = cast(Array, sum(w * x for w, x in zip(WEIGHTS, rows, strict=True)))
        centred, own = moments(mean)
        target = barycenter([moments(x)[1] for x in rows], WEIGHTS)
        half = root(own)
        inverse = np.linalg.inv(half)
        push = inverse @ root(half @ target @ half) @ inverse
        wanted = centred + (mean - centred) @ push + centre.numpy()
        ours = merged(points, Wasserstein(weight=WEIGHTS, origin=origin, covariance="full"), base)
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=0, atol=2e-6)
        np.testing.assert_allclose(moments(ours.numpy() - centre.numpy())[1], target, rtol=0, atol=2e-6)

    def test_full_against_pot(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ot.gaussian import bures_wasserstein_barycenter

        points = family(2, spread=0.7)[1:]
        means, covariances = (
            np.stack(each) for each in zip(*(moments(x.numpy()) for x in points), strict=True)
        )
        solve = cast(Any, bures_wasserstein_barycenter)
        mean, target = solve(means, covariances, np.array([0.6, 0.4]), eps=1e-12)
        ours = merged(points, Wasserstein(weight=(0.6, 0.4), covariance="full"))
        found = moments(ours.numpy())
        np.testing.assert_allclose(found[0], mean, atol=1e-12)
        np.testing.assert_allclose(found[1], target, atol=2e-6)

    def test_fewer_rows_than_columns(self) -> None:
        points = family(size=(5, 12), spread=0.7)[1:]
        ours = merged(points, Wasserstein(covariance="full"))
        own, mean = (float(moments(x.numpy())[1].trace()) for x in (ours, merged(points, Linear())))
        most = sum(float(moments(x.numpy())[1].trace()) for x in points) / 3
        assert mean < own < most * (1 + 1e-9)

    def test_siblings_barely_change(self) -> None:
        points = family(size=(64, 32), spread=1e-3)[1:]
        linear = merged(points, Linear())
        for strategy in (Wasserstein(), Wasserstein(covariance="full")):
            assert float((merged(points, strategy) - linear).abs().max()) < 1e-5

    def test_what_has_no_rows_is_averaged(self) -> None:
        for size in ((7,), (1, 7), ()):
            points = family(size=size)[1:]
            ours = merged(points, Wasserstein(weight=WEIGHTS))
            torch.testing.assert_close(ours, merged(points, Linear(weight=WEIGHTS)), rtol=0, atol=1e-15)

    @pytest.mark.parametrize("covariance", ["diagonal", "full"])
    def test_spread_that_is_gone_is_not_made_up(self, covariance: str) -> None:
        a = family()[1]
        ours = merged([a, -a], Wasserstein(covariance=covariance))
        assert float(ours.abs().max()) < 1e-14
        flat = [torch.ones_like(a), 3 * torch.ones_like(a)]
        torch.testing.assert_close(merged(flat, Wasserstein(covariance=covariance)), 2 * flat[0])

    def test_wide_tensors_are_pushed_by_columns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wasserstein, "MAX_COLUMNS", 5)
        points = family()[1:]
        diagonal, full = (merged(points, Wasserstein(covariance=c)) for c in ("diagonal", "full"))
        assert torch.equal(diagonal, full)

    def test_tells_what_averaging_took(self) -> None:
        points = [torch.randn(4000, 8, generator=torch.Generator().manual_seed(i)).double() for i in range(4)]
        strategy = Wasserstein().resolved(4)
        block = Block.of(points)
        kernel = strategy.kernel(block.case)
        assert kernel.survey is not None
        rounds = kernel.survey(4000 * 8)
        first = next(rounds)
        with pytest.raises(StopIteration) as stop:
            rounds.send(first.measure(block))
        figures = kernel.figures(stop.value.value)
        assert float(figures["spread_of_mean"]) == pytest.approx(0.5, abs=0.01)
