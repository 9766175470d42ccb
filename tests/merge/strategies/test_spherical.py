"""Strategies on the sphere, against float64 formulas written out in full space."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from merge_models.manifolds import Gram
from merge_models.manifolds.base import GeooptSphere
from merge_models.merge import PlanError, RecipeError
from merge_models.merge.cli.results import figure_lines
from merge_models.merge.contract.strategy import BaseModel
from merge_models.merge.kernels.mixing import column_gram, mix, row_gram
from merge_models.merge.strategies import (
    AbstractStrategy,
    Karcher,
    Linear,
    ModelStock,
    MultiSlerp,
    NormMean,
    NuSlerp,
    Slerp,
    UnitMean,
)
from merge_models.merge.strategies.families.span import Mixture
from tests.helpers import assert_same_bits, merge_states, read_folder, tensors, write_folder

WEIGHTS = (0.5, 0.3, 0.2)
ZEROS = torch.zeros(6, dtype=torch.float64)


def family(spread: float, count: int = 3, size: tuple[int, ...] = (12, 20), seed: int = 0) -> list[Tensor]:
    """A base and ``count`` siblings at about ``spread`` rad from it, float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator, dtype=torch.float64)
    apart = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [base, *(base + spread * each for each in apart)]


def merged(
    points: list[Tensor], strategy: AbstractStrategy, base: Tensor | None = None, **options: Any
) -> Tensor:
    """One tensor's merge, through the whole loop."""
    held = None if base is None else {"w": base.clone()}
    return merge_states([{"w": point} for point in points], strategy, base=held, **options)["w"]


def mixture_of(strategy: Any, gram: Gram) -> Mixture:
    return strategy.resolved(gram.cross.shape[-1]).mixture(gram)


def gap(left: Tensor, right: Tensor) -> float:
    """Distance relative to the size of the right one."""
    return float((left.double() - right.double()).norm() / right.double().norm())


def angle(u: Tensor, v: Tensor) -> Tensor:
    u, v = u / u.norm(), v / v.norm()
    return 2 * torch.atan2((u - v).norm(), (u + v).norm())


def log(m: Tensor, u: Tensor) -> Tensor:
    across = (u - m) - ((u - m) * m).sum() * m
    length = across.norm()
    return across * (angle(m, u) / length) if length > 0 else across


def exp(m: Tensor, v: Tensor) -> Tensor:
    length = v.norm()
    moved = torch.cos(length) * m + torch.sinc(length / math.pi) * v
    return moved / moved.norm()


def karcher_in_full_space(points: list[Tensor], weights: tuple[float, ...], steps: int = 400) -> Tensor:
    """The plain iteration ``m <- exp_m(sum w log_m u)`` on whole tensors, times the mean norm."""
    units = [point / point.norm() for point in points]
    m = cast(Tensor, sum(w * u for w, u in zip(weights, units, strict=True)))
    m = m / m.norm()
    for _ in range(steps):
        step = cast(Tensor, sum(w * log(m, u) for w, u in zip(weights, units, strict=True)))
        m = exp(m, step)
        if step.norm() < 1e-16:
            break
    return m * sum(w * float(point.norm()) for w, point in zip(weights, points, strict=True))


def mixture_over_differences(points: list[Tensor], result: Tensor) -> Tensor:
    """Coefficients of the result over the first point and the differences from it, by least squares."""
    first, *others = [point.flatten() for point in points]
    basis = torch.stack([first, *(other - first for other in others)], dim=1)
    scale = basis.norm(dim=0)
    return torch.linalg.lstsq(basis / scale, result.flatten().unsqueeze(1)).solution[:, 0] / scale


def slerp_formula(a: Tensor, b: Tensor, t: float) -> Tensor:
    w = angle(a, b)
    return (torch.sin((1 - t) * w) * a + torch.sin(t * w) * b) / torch.sin(w)


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


class TestSlerp:
    @pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
    @pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
    def test_formula(self, t: float, spread: float) -> None:
        _, a, b = family(spread, 2)
        assert gap(merged([a, 2 * b], Slerp(t=t)), slerp_formula(a, 2 * b, t)) < 1e-14

    def test_small_angles_are_no_special_case(self) -> None:
        _, a, b = family(1e-9, 2)
        assert gap(merged([a, b], Slerp(t=0.3)) - a, 0.3 * (b - a)) < 1e-6
        _, a, b = family(1e-3, 2)
        assert gap(merged([a, b], Slerp(t=0.3)), slerp_formula(a, b, 0.3)) < 1e-15

    def test_bf16_is_rounded_once(self) -> None:
        _, a, b = [x.bfloat16() for x in family(0.05, 2, size=(64, 64))]
        assert_same_bits(merged([a, b], Slerp(t=0.3)), slerp_formula(a.double(), b.double(), 0.3).bfloat16())

    def test_ends_are_the_models(self) -> None:
        _, a, b = family(0.4, 2)
        assert_same_bits(merged([a, b], Slerp(t=0)), a)
        assert_same_bits(merged([a, b], Slerp(t=1)), b)

    def test_a_base_is_the_first_end(self) -> None:
        _, a, b = family(0.4, 2)
        wanted = merged([a, b], Slerp(t=0.3))
        first, second = {"w": a}, {"w": b}
        for models in ([second], [second, first], [first, second]):
            assert_same_bits(merge_states(models, Slerp(t=0.3), base=first)["w"], wanted)

    def test_without_an_arc_the_line_is_taken(self) -> None:
        _, a, _ = family(0.4, 2)
        assert gap(merged([a, -2 * a], Slerp(t=0.25)), 0.25 * a) < 1e-15
        assert gap(merged([torch.zeros_like(a), a], Slerp(t=0.25)), 0.25 * a) < 1e-15
        opposite = Gram.from_points(torch.stack([a.flatten(), -a.flatten()]))
        assert Slerp().resolved(2).mixture(opposite).figures["arc"] is False


class TestNuSlerp:
    @pytest.mark.parametrize("with_base", [False, True])
    @pytest.mark.parametrize(
        ("weight", "t"),
        [((3.0, 1.0), 0.25), ((-0.5, 0.5), 0.5), ((0.0, 0.0), 0.5), ((-1.0, 3.0), 1.5), ((3.0, -1.0), -0.5),
         ((-1.0, -3.0), 0.75)],
    )  # fmt: skip
    def test_rows_columns_and_whole(self, weight: tuple[float, float], t: float, with_base: bool) -> None:
        """At mergekit's t, beyond the ends of the arc too."""
        base, a, b = family(0.6, 2)
        centre = base if with_base else torch.zeros_like(base)
        x, y, held = a - centre, b - centre, base if with_base else None
        rows = torch.stack([slerp_formula(p, q, t) for p, q in zip(x, y, strict=True)])
        columns = torch.stack([slerp_formula(p, q, t) for p, q in zip(x.T, y.T, strict=True)], dim=1)
        by_row = NuSlerp(weight=weight, nuslerp_flatten=False)
        by_column = NuSlerp(weight=weight, nuslerp_flatten=False, nuslerp_row_wise=True)
        assert gap(merged([a, b], NuSlerp(weight=weight), held), centre + slerp_formula(x, y, t)) < 1e-14
        assert gap(merged([a, b], by_row, held), centre + rows) < 1e-14
        assert gap(merged([a, b], by_column, held), centre + columns) < 1e-14
        assert gap(merged([a[0], b[0]], by_column, None), slerp_formula(a[0], b[0], t)) < 1e-14

    def test_columns_are_summed_over_blocks(self) -> None:
        _, a, b = [x.float() for x in family(0.6, 2, size=(3000, 200))]
        strategy = NuSlerp(nuslerp_flatten=False, nuslerp_row_wise=True)
        a64, b64 = a.double(), b.double()
        w = 2 * torch.atan2((a64 / a64.norm(dim=0) - b64 / b64.norm(dim=0)).norm(dim=0),
                            (a64 / a64.norm(dim=0) + b64 / b64.norm(dim=0)).norm(dim=0))  # fmt: skip
        wanted = torch.sin(w / 2) * (a64 + b64) / torch.sin(w)
        assert gap(merged([a, b], strategy), wanted) < 1e-7


class TestMultiSlerp:
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("with_base", [True, False])
    def test_one_step_of_the_log_map(self, normalize: bool, with_base: bool) -> None:
        base, *points = family(1.5)
        weights = (0.6, 0.5, 0.1)
        centre = base if with_base else torch.zeros_like(base)
        x = [p - centre for p in points]
        units = [p / p.norm() for p in x]
        shares = [w / sum(weights) for w in weights]
        m = cast(Tensor, sum(w * u for w, u in zip(shares, units, strict=True)))
        m = m / m.norm()
        step = cast(Tensor, sum(w * log(m, u) for w, u in zip(shares, units, strict=True)))
        scale = shares if normalize else weights
        length = sum(w * float(p.norm()) for w, p in zip(scale, x, strict=True))
        ours = merged(
            points, MultiSlerp(weight=weights, normalize_weights=normalize), base if with_base else None
        )
        assert gap(ours, centre + exp(m, step) * length) < 1e-13

    def test_mergekits_step_is_zero_and_this_one_is_not(self) -> None:
        points = family(1.5)[1:]
        units = [p / p.norm() for p in points]
        m = cast(Tensor, sum(w * u for w, u in zip(WEIGHTS, units, strict=True)))
        m = m / m.norm()
        projected = cast(
            Tensor, sum(w * (u - (u * m).sum() * m) for w, u in zip(WEIGHTS, units, strict=True))
        )
        assert float(projected.norm()) < 1e-15
        start, once, end = (
            merged(points, s) for s in (UnitMean(WEIGHTS), MultiSlerp(WEIGHTS), Karcher(WEIGHTS))
        )
        assert gap(once, end) < 0.1 * gap(start, end)


class TestModelStock:
    @pytest.mark.parametrize("count", [2, 4])
    def test_formula(self, count: int) -> None:
        base, *points = family(0.1, count)
        shared = torch.randn(base.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        points = [x + 0.1 * shared for x in points]
        expected = self.formula(base, points)
        assert gap(merged(points, ModelStock(), base), expected) < 1e-14
        rows = torch.stack([self.formula(base[i], [x[i] for x in points]) for i in range(len(base))])
        assert gap(merged(points, ModelStock(filter_wise=True), base), rows) < 1e-14

    @staticmethod
    def formula(base: Tensor, points: list[Tensor]) -> Tensor:
        d = [(x - base).flatten() for x in points]
        pairs = [(i, j) for i in range(len(d)) for j in range(i)]
        c = sum(float(d[i] @ d[j] / (d[i].norm() * d[j].norm())) for i, j in pairs) / len(pairs)
        t = max(0.0, len(d) * c / (1 + (len(d) - 1) * c))
        return t * torch.stack(points).mean(0) + (1 - t) * base

    def test_singular_cases_are_the_base(self) -> None:
        base, a, _ = family(0.1, 2)
        assert_same_bits(merged([a, 2 * base - a], ModelStock(), base), base)
        assert_same_bits(merged([base, base], ModelStock(), base), base)
        base, a = base.float(), a.float()
        assert_same_bits(merged([a, base], ModelStock(filter_wise=True), base), base)

    def test_parents_that_agree_leave_nothing_to_the_base(self) -> None:
        base, a, _ = family(0.1, 2)
        assert_same_bits(merged([a, a, a], ModelStock(), base), a)


class TestDegenerate:
    MEANS = (Karcher, UnitMean, NormMean, MultiSlerp)

    @pytest.mark.parametrize("kind", MEANS)
    def test_opposite_parents_give_the_linear_mean(self, kind: type) -> None:
        _, a, b = family(0.4, 2)
        assert gap(merged([a, -a, a, -a, b], kind(weight=(1, 1, 1, 1, 0))) + a, a) < 1e-14
        opposite = Gram.from_points(torch.stack([a.flatten(), -a.flatten()]))
        mixture = mixture_of(kind(), opposite)
        assert mixture.parents.tolist() == [0.5, 0.5]
        assert mixture.figures.get("converged", False) is False

    @pytest.mark.parametrize("kind", [Karcher, UnitMean, NormMean, Slerp, NuSlerp, ModelStock])
    def test_nothing_is_said_to_fail_where_all_are_zero(self, kind: type) -> None:
        """A pooler's bias may be zero in every parent: its mean is zero, and nothing was given up for it."""
        strategy = kind().resolved(2)
        zeros = Gram.from_points(torch.zeros(2, 6, dtype=torch.float64))
        parents = strategy.mixture(zeros).parents
        assert torch.equal(mix([torch.zeros(1, 6)] * 2, parents, None, None)[0], ZEROS)
        settings: dict[str, Any] = {"origin": "base"} if hasattr(strategy, "origin") else {}
        based = kind(**settings).resolved(2).mixture(zeros, True) if kind is not Slerp else None
        for found in filter(None, (strategy.mixture(zeros), based)):
            assert all(value is not False for value in found.figures.values())
            assert found.figures["reason"] in ("every model is zero", "every model is equal to the base")
            assert not {"length", "cosine", "t"} & set(found.figures)
        bad = Gram.from_points(torch.full((2, 6), float("nan"), dtype=torch.float64))
        assert strategy.mixture(bad).figures.get("reason") in (None, "a model holds NaN or Inf")
        assert strategy.mixture(bad).figures.get("converged", False) is False

    @pytest.mark.parametrize("kind", [Karcher, UnitMean, NormMean, Slerp, NuSlerp])
    def test_a_direction_that_was_given_up_has_a_reason(self, kind: type) -> None:
        opposite = Gram.from_points(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double())
        figures = kind().resolved(2).mixture(opposite).figures
        assert figures["reason"].count("opposite models") == 1 and " line" in figures["reason"]
        assert figures.get("converged", figures.get("arc", False)) is False
        lone = Gram.from_points(torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double())
        assert ("reason" in kind().resolved(2).mixture(lone).figures) is (kind in (Slerp, NuSlerp))

    def test_the_summary_says_why(self) -> None:
        told = {"a": {"converged": True}, "b": {"converged": True, "reason": "every model is zero"}}
        assert figure_lines(told, False) == ["  converged: 2 of 2 tensors", "  1 tensor: every model is zero"]

    @pytest.mark.parametrize("kind", MEANS)
    def test_a_zero_parent_counts_in_the_norm_alone(self, kind: type) -> None:
        _, a, b = family(0.4, 2)
        result = merged([a, b, torch.zeros_like(a)], kind())
        wanted = merged([a, b], kind())
        assert gap(result * 1.5, wanted) < 1e-13

    @pytest.mark.parametrize("kind", MEANS)
    def test_one_bad_value_does_not_become_a_bad_tensor(self, kind: type) -> None:
        gram = Gram.from_points(torch.stack([x.flatten() for x in family(0.3)[1:]]))
        gram.differences[1, 2] = float("nan")
        mixture = mixture_of(kind(weight=WEIGHTS), gram)
        assert mixture.parents.tolist() == pytest.approx(WEIGHTS, rel=1e-15)

    @pytest.mark.parametrize("kind", MEANS)
    def test_rank_one_matrices(self, kind: type) -> None:
        a = torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 9)).double()
        assert gap(merged([a, 2 * a, 3 * a], kind()), 2 * a) < 1e-14

    def test_weightless_parents_do_not_matter(self) -> None:
        points = family(0.4)[1:]
        for kind in self.MEANS:
            assert_same_bits(merged(points, kind(weight=(0.0, 2.0, 0.0))), points[1])


BAD = [
    (Slerp(t=1.5), 2, False, RecipeError, r"'t' must be in \[0, 1\], not 1.5"),
    (Slerp(t=-0.1), 2, False, RecipeError, r"'t' must be in \[0, 1\]"),
    (Slerp(), 3, False, PlanError, "slerp merges exactly 2 models, not 3"),
    (Slerp(), 1, False, PlanError, "slerp merges exactly 2 models, not 1"),
    (NuSlerp(), 3, False, PlanError, "nuslerp merges exactly 2 models, not 3"),
    (MultiSlerp(weight=(-0.5, 0.5)), 2, False, RecipeError, r"'weight' must be in \[0, inf\)"),
    (Karcher(weight=(1.0, -1.0)), 2, False, RecipeError, r"'weight' must be in \[0, inf\)"),
    (Karcher(weight=(1.0, 1.0)), 3, False, RecipeError, "'weight' has 2 values for 3 models"),
    (Karcher(weight=0.0), 2, False, RecipeError, "every weight is 0"),
    (Karcher(origin="base"), 2, False, PlanError, "karcher needs a base model"),
    (UnitMean(origin="base"), 2, False, PlanError, "unit_mean needs a base model"),
    (Karcher(origin="bass"), 2, True, RecipeError, "takes one of zero, base, not 'bass'"),
    (Karcher(per="neuron"), 2, True, RecipeError, "takes one of tensor, row, not 'neuron'"),
    (Karcher(max_iter=-1), 2, False, RecipeError, "'max_iter' must be"),
    (MultiSlerp(eps=0.0), 2, False, RecipeError, "'eps' must be"),
    (ModelStock(), 2, False, PlanError, "model_stock needs a base model"),
    (ModelStock(), 1, True, PlanError, "model_stock merges at least 2 models, not 1 besides the base"),
]


@pytest.mark.parametrize(("strategy", "count", "with_base", "error", "words"), BAD)
def test_bad_input(
    strategy: AbstractStrategy, count: int, with_base: bool, error: type[Exception], words: str
) -> None:
    base, *points = family(0.1, count)
    with pytest.raises(error, match=words):
        merged(points, strategy, base if with_base else None)


class TestRecipes:
    def run(self, place: Path, text: str) -> dict[str, Tensor]:
        from merge_models.merge import run_recipe

        for number, name in enumerate("abc"):
            write_folder(place / name, tensors(number))
        recipe = place / "recipe.yml"
        recipe.write_text(text.replace("@", f"{place}/"), encoding="utf-8")
        run_recipe(recipe, place / "out", threads=1)
        return read_folder(place / "out")

    def test_slerp_starts_at_the_base_model(self, tmp_path: Path) -> None:
        out = self.run(
            tmp_path,
            "merge_method: slerp\nbase_model: '@b'\nmodels:\n- model: '@a'\n- model: '@b'\n"
            "parameters: {t: 0.25}\n",
        )
        a, b = tensors(0), tensors(1)
        for name in a:
            assert gap(out[name], slerp_formula(b[name].double(), a[name].double(), 0.25)) < 1e-7

    def test_mergekits_karcher_runs_as_it_is_with_the_listed_base_as_a_parent(self, tmp_path: Path) -> None:
        out = self.run(
            tmp_path,
            "merge_method: karcher\nbase_model: '@a'\nmodels:\n- model: '@a'\n- model: '@b'\n"
            "parameters: {max_iter: 10, tol: 1e-9}\n",
        )
        both = merge_states([tensors(0), tensors(1)], Karcher())
        assert all(gap(out[name], both[name]) < 1e-7 for name in both)

    def test_about_the_base_the_base_is_no_parent(self, tmp_path: Path) -> None:
        out = self.run(
            tmp_path,
            "merge_method: fisher_rao\nbase_model: '@a'\n"
            "models:\n- model: '@a'\n- model: '@b'\n- model: '@c'\n"
            "parameters: {origin: base}\n",
        )
        both = merge_states([tensors(1), tensors(2)], Karcher(origin="base"), base=tensors(0))
        assert all(gap(out[name], both[name]) < 1e-7 for name in both)

    def test_what_the_base_is_depends_on_the_origin(self) -> None:
        assert Karcher.base_for({}) is BaseModel.UNUSED
        assert Karcher.base_for({"origin": "base"}) is BaseModel.REQUIRED
        filters = [{"filter": "mlp", "value": "base"}, {"value": "zero"}]
        assert Karcher.base_for({"origin": filters}) is BaseModel.OPTIONAL
        assert MultiSlerp.base_for({}) is BaseModel.OPTIONAL


def test_none_waits_for_geoopt() -> None:
    script = """
import sys, torch
from merge_models.merge import merge
from merge_models.merge.strategies import Karcher, ModelStock, MultiSlerp, NormMean, NuSlerp, Slerp, UnitMean
a, b = {"w": torch.ones(3, 4)}, {"w": torch.eye(3, 4)}
for strategy in (Karcher(), Slerp(), NuSlerp(), MultiSlerp(), NormMean(), UnitMean(), ModelStock()):
    merge([a, b], strategy, base={"w": torch.zeros(3, 4)} if isinstance(strategy, ModelStock) else None)
    assert "geoopt" not in sys.modules, strategy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class TestMixing:
    def test_grams_by_pieces(self) -> None:
        base, *points = family(0.2, size=(300, 400))
        rows = row_gram(points, base)
        whole = Gram.from_points(torch.stack(points, dim=-2), base)
        columns = column_gram(points, base)
        turned = Gram.from_points(torch.stack([x.T for x in points], dim=-2), base.T)
        for ours, wanted in ((rows, whole), (columns, turned)):
            assert gap(ours.reference.squeeze(0), wanted.reference) < 1e-14
            assert gap(ours.cross.squeeze(0), wanted.cross) < 1e-13
            assert gap(ours.differences.squeeze(0), wanted.differences) < 1e-14

    def test_mixes_by_tensor_row_and_column(self) -> None:
        base, *points = family(0.2, size=(300, 400))
        stack = torch.stack(points, dim=-1)
        generator = torch.Generator().manual_seed(2)
        for shape in ((3,), (300, 3), (1, 400, 3)):
            weights = torch.rand(shape, generator=generator, dtype=torch.float64)
            rest = torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
            wide = weights if len(shape) != 2 else weights.unsqueeze(1)
            tail = rest if len(shape) != 2 else rest.unsqueeze(1)
            wanted = (stack * wide).sum(-1) + tail * base
            assert gap(mix(points, weights, base, rest), wanted) < 1e-14
