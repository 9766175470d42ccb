"""Karcher mean: against the iteration in the full space, its limits, and what it tells."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from merge_models.manifolds import Gram
from merge_models.manifolds.base import GeooptSphere
from merge_models.merge.strategies import (
    Karcher,
    NormMean,
    Slerp,
    UnitMean,
)
from tests.merge.strategies.sphere import (
    WEIGHTS,
    family,
    gap,
    karcher_in_full_space,
    log,
    merged,
    mixture_over_differences,
    slerp_formula,
)


class TestKarcher:
    @pytest.mark.parametrize("spread", [1e-7, 1e-4, 1e-2, 0.3, 3.0])
    def test_two_equal_parents_meet_at_slerps_middle(self, spread: float) -> None:
        _, a, b = family(spread, 2)
        b = 1.7 * b
        middle = slerp_formula(a / a.norm(), b / b.norm(), 0.5) * (a.norm() + b.norm()) / 2
        assert gap(merged([a, b], Karcher()), middle) < 1e-14

    def test_two_weighted_parents_are_slerp_at_the_weight(self) -> None:
        _, a, b = family(0.8, 2)
        units = [a / a.norm(), b / b.norm()]
        there = merged(units, Karcher(weight=(0.7, 0.3)))
        assert gap(there, merged(units, Slerp(t=0.3))) < 1e-13

    def test_is_the_rescaled_mean_as_angles_vanish(self) -> None:
        gaps = [
            gap(merged(p, Karcher()), merged(p, NormMean()))
            for p in (family(s)[1:] for s in (1e-1, 1e-2, 1e-3))
        ]
        assert gaps[0] > 1e-5 and gaps[1] < 1e-5 and gaps[2] < 1e-8

    @pytest.mark.parametrize("per", ["tensor", "row"])
    @pytest.mark.parametrize("origin", ["zero", "base"])
    def test_is_stationary_on_bf16_siblings(self, per: str, origin: str) -> None:
        base, *points = [x.bfloat16() for x in family(1e-3, size=(7, 4096))]
        uses_base = origin == "base"
        result = merged(
            points,
            Karcher(weight=WEIGHTS, per=per, origin=origin),
            base if uses_base else None,
            dtype="float64",
        )
        centre = base.double() if uses_base else torch.zeros(7, 4096, dtype=torch.float64)
        rows = [slice(i, i + 1) for i in range(7)] if per == "row" else [slice(None)]
        for row in rows:
            m = (result - centre)[row]
            units = [(x.double() - centre)[row] for x in points]
            mean = sum(w * float(u.norm()) for w, u in zip(WEIGHTS, units, strict=True))
            assert float(m.norm()) == pytest.approx(mean, rel=1e-11)
            m, units = m / m.norm(), [u / u.norm() for u in units]
            residual = cast(Tensor, sum(w * log(m, u) for w, u in zip(WEIGHTS, units, strict=True)))
            assert float(residual.norm()) < 1e-10

    @pytest.mark.parametrize("spread", [1e-3, 0.1, 1.0])
    @pytest.mark.parametrize("count", [3, 5])
    def test_coefficients_agree_with_the_full_space(self, spread: float, count: int) -> None:
        points = family(spread, count)[1:]
        points[0] = 2 * points[0] if spread == 1.0 else points[0]
        weights = tuple(w / sum(range(1, count + 1)) for w in range(1, count + 1))
        ours = merged(points, Karcher(weight=weights))
        full = karcher_in_full_space(points, weights)
        assert gap(ours, full) < 1e-12
        found, wanted = (mixture_over_differences(points, x) for x in (ours, full))
        assert float((found - wanted).abs().max()) < 1e-9

    def test_agrees_with_geoopt_where_geoopt_is_accurate(self) -> None:
        points = family(1.0)[1:]
        sphere = GeooptSphere()
        units = torch.stack([x.flatten() / x.norm() for x in points])
        weights = torch.tensor(WEIGHTS, dtype=torch.float64).unsqueeze(1)
        m = sphere.projx((weights * units).sum(0))
        for _ in range(300):
            m = sphere.expmap(m, (weights * sphere.logmap(m, units)).sum(0))
        ours = merged(points, Karcher(weight=WEIGHTS)).flatten()
        assert gap(ours / ours.norm(), m) < 1e-11

    def test_rows_are_points_of_their_own(self) -> None:
        base, *points = family(0.4)
        for origin, centre in (("zero", torch.zeros_like(base)), ("base", base)):
            ours = merged(points, Karcher(weight=WEIGHTS, per="row", origin=origin), base)
            for i in range(len(base)):
                row = karcher_in_full_space([(x - centre)[i] for x in points], WEIGHTS) + centre[i]
                assert gap(ours[i], row) < 1e-12

    def test_mergekits_iteration_limits_are_obeyed(self) -> None:
        points = family(2.0)[1:]
        first = merged(points, Karcher(weight=WEIGHTS, max_iter=0))
        assert gap(first, merged(points, UnitMean(weight=WEIGHTS))) < 1e-13
        assert (
            gap(
                merged(points, Karcher(weight=WEIGHTS, max_iter=10, tol=1e-5)),
                merged(points, Karcher(weight=WEIGHTS)),
            )
            < 1e-4
        )

    def test_tells_what_it_found(self) -> None:
        gram = Gram.from_points(torch.stack([x.flatten() for x in family(0.3)[1:]]))
        figures = Karcher().resolved(3).mixture(gram).figures
        assert figures["converged"] is True and figures["unique"] is True
        assert float(figures["residual"]) < 1e-12 and int(figures["iterations"]) <= 3
        assert float(figures["largest_angle"]) == pytest.approx(float(gram.angles().max()), rel=1e-12)
