"""The controls of the Karcher mean: unit mean and norm mean."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from merge_models.merge.strategies import (
    Karcher,
    Linear,
    NormMean,
    UnitMean,
)
from tests.merge.strategies.sphere import (
    WEIGHTS,
    angle,
    family,
    gap,
    merged,
)


class TestControls:
    """papers.md 0.1: where the Karcher mean is no more than a normalised mean."""

    def test_unit_mean_is_karcher_for_two_and_for_equal_angles(self) -> None:
        _, a, b = family(1.0, 2)
        assert gap(merged([a, 3 * b], UnitMean()), merged([a, 3 * b], Karcher())) < 1e-14
        corners = list(torch.eye(20, dtype=torch.float64)[:4] + 0.1)
        assert gap(merged(corners, UnitMean()), merged(corners, Karcher())) < 1e-14

    @pytest.mark.parametrize(("ratio", "bound"), [(0.02, 3e-7), (0.1, 4e-5), (0.5, 3e-3)])
    def test_unit_mean_is_within_the_known_angles(self, ratio: float, bound: float) -> None:
        generator = torch.Generator().manual_seed(1)
        base = torch.randn(4096, generator=generator, dtype=torch.float64)
        factors = (0.5, 0.8, 1.0, 1.2, 1.5)
        points = [
            base + f * ratio * torch.randn(4096, generator=generator, dtype=torch.float64) for f in factors
        ]
        apart = float(angle(merged(points, UnitMean()), merged(points, Karcher())))
        assert bound / 100 < apart < 1.5 * bound

    def test_unit_mean_formula(self) -> None:
        points = family(0.7)[1:]
        mean = cast(Tensor, sum(w * x / x.norm() for w, x in zip(WEIGHTS, points, strict=True)))
        norm = sum(w * float(x.norm()) for w, x in zip(WEIGHTS, points, strict=True))
        assert gap(merged(points, UnitMean(weight=WEIGHTS)), mean / mean.norm() * norm) < 1e-14

    @pytest.mark.parametrize("origin", ["zero", "base"])
    def test_norm_mean_formula(self, origin: str) -> None:
        base, *points = family(0.7)
        centre = base if origin == "base" else torch.zeros_like(base)
        mean = cast(Tensor, sum(w * (x - centre) for w, x in zip(WEIGHTS, points, strict=True)))
        norm = sum(w * float((x - centre).norm()) for w, x in zip(WEIGHTS, points, strict=True))
        ours = merged(points, NormMean(weight=WEIGHTS, origin=origin), base)
        assert gap(ours, centre + mean / mean.norm() * norm) < 1e-14

    def test_about_the_base_norms_are_kept_where_linear_loses_them(self) -> None:
        base, *points = family(1e-2, 4, size=(64, 64))
        length = sum(float((x - base).norm()) for x in points) / 4
        for strategy in (Karcher(origin="base"), UnitMean(origin="base"), NormMean(origin="base")):
            assert float((merged(points, strategy, base) - base).norm()) == pytest.approx(length, rel=1e-12)
        assert float((merged(points, Linear()) - base).norm()) == pytest.approx(length / 2, rel=0.05)
