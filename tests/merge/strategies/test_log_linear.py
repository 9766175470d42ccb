"""Log-linear pooling: geometric means, votes, zeros; and what it shares with wasserstein of bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from merge_models.merge import PlanError, RecipeError
from merge_models.merge.strategies import AbstractStrategy, Linear, LogLinear, Wasserstein
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


class TestLogLinear:
    @pytest.mark.parametrize("origin", ["zero", "base"])
    def test_formula(self, origin: str) -> None:
        base, *points = family(size=(300, 400))
        centre = base if origin == "base" else torch.zeros_like(base)
        x = np.stack([(p - centre).numpy() for p in points])
        w = np.array(WEIGHTS).reshape(3, 1, 1)
        votes = (w * np.sign(x)).sum(0)
        sign = np.where(np.abs(votes) > 1e-9, np.sign(votes), np.sign((w * x).sum(0)))
        wanted = centre.numpy() + sign * np.exp((w * np.log(np.abs(x))).sum(0))
        ours = merged(points, LogLinear(weight=WEIGHTS, origin=origin), base)
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=1e-12, atol=1e-14)

    def test_signs_are_elected_by_weight_and_ties_by_mass(self) -> None:
        a, b, c = column(1.0, 4.0, 1.0, 2.0), column(-4.0, -1.0, -1.0, -2.0), column(-4.0, -1.0, 1.0, 2.0)
        three = merged([a, b, c], LogLinear())
        assert three.sign().tolist() == [-1, -1, 1, 1]
        two = merged([a, b], LogLinear())
        assert two.tolist() == pytest.approx([-2.0, 2.0, 0.0, 0.0])
        heavy = merged([a, b, c], LogLinear(weight=(3.0, 1.0, 1.0)))
        assert heavy.sign().tolist() == [1, 1, 1, 1]

    def test_one_zero_vetoes_or_is_skipped(self) -> None:
        a, b, c = column(4.0, 0.0, 0.0), column(0.0, -2.0, 0.0), column(1.0, -8.0, 0.0)
        assert merged([a, b, c], LogLinear()).tolist() == [0.0, 0.0, 0.0]
        assert merged([a, b, c], LogLinear(zeros="skip")).tolist() == pytest.approx([2.0, -4.0, 0.0])
        weighted = merged([a, b, c], LogLinear(weight=(2.0, 1.0, 1.0), zeros="skip"))
        assert weighted.tolist() == pytest.approx([4 ** (2 / 3), -4.0, 0.0])
        assert merged([a, b, c], LogLinear(weight=(1.0, 0.0, 0.0))).tolist() == a.tolist()

    def test_about_the_base_a_veto_keeps_the_base(self) -> None:
        base, a, b = column(1.0, 1.0), column(1.0, 1.5), column(3.0, 3.0)
        assert merged([a, b], LogLinear(origin="base"), base).tolist() == pytest.approx([1.0, 2.0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_extreme_magnitudes(self, dtype: torch.dtype) -> None:
        large, small = torch.finfo(dtype).max, torch.finfo(dtype).tiny
        ends = [torch.tensor([large, small, large]).to(dtype), torch.tensor([large, small, small]).to(dtype)]
        ours = merged(ends, LogLinear()).double()
        assert ours.tolist() == pytest.approx(
            [large, small, (large * small) ** 0.5], rel=torch.finfo(dtype).eps
        )

    def test_is_at_most_the_linear_mean(self) -> None:
        points = [x.abs() for x in family()[1:]]
        assert bool(
            (merged(points, LogLinear(weight=WEIGHTS)) <= merged(points, Linear(WEIGHTS)) + 1e-15).all()
        )


BAD = [
    (LogLinear(origin="base"), PlanError, "log_linear needs a base model"),
    (LogLinear(zeros="ignore"), RecipeError, "'zeros' takes one of veto, skip, not 'ignore'"),
    (LogLinear(weight=(0.0, 0.0)), RecipeError, "every weight is 0"),
    (LogLinear(weight=(1.0, -1.0)), RecipeError, r"'weight' must be in \[0, inf\)"),
    (Wasserstein(origin="base"), PlanError, "wasserstein needs a base model"),
    (Wasserstein(covariance="ful"), RecipeError, "takes one of diagonal, full, not 'ful'"),
    (Wasserstein(weight=0.0), RecipeError, "every weight is 0"),
]


@pytest.mark.parametrize(("strategy", "error", "words"), BAD)
def test_bad_input(strategy: AbstractStrategy, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        merged(family(2)[1:], strategy)
