"""Hyperbolic space far from its origin, against closed forms on a line through it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from merge_models.manifolds.frechet import frechet_mean
from merge_models.manifolds.hyperbolic import Lorentz, PoincareBall

torch.set_num_threads(1)
LORENTZ, BALL = Lorentz(), PoincareBall()


def on_a_line(places: list[float]) -> Tensor:
    """Points whose coordinate is ``sinh`` of their signed distance from the origin."""
    values = torch.zeros(len(places), 3, dtype=torch.float64)
    values[:, 1] = torch.tensor(places, dtype=torch.float64).sinh()
    return LORENTZ.lift(values).point


@pytest.mark.parametrize("far", [0.0, 1.0, 5.0, 12.0])
@pytest.mark.parametrize("step", [1e-6, 1e-3, 1.0, 4.0])
def test_distances_on_a_line_are_differences(far: float, step: float) -> None:
    first, second = on_a_line([far, far + step])
    rounding = 4e-16 * max(1.0, far) / step  # what the places themselves have lost
    assert abs(float(LORENTZ.dist(first, second)) / step - 1) < 1e-13 + 4 * rounding
    tangent = LORENTZ.log(first, second)
    assert abs(float(LORENTZ.norm(first, tangent)) / step - 1) < 1e-13 + 4 * rounding


def test_opposite_points_and_equal_ones_have_distances() -> None:
    first, second = on_a_line([3.0, -3.0])
    assert abs(float(LORENTZ.dist(first, second)) - 6) < 1e-13
    assert float(LORENTZ.dist(first, first)) == 0
    assert float(LORENTZ.log(first, first).abs().max()) == 0


def test_the_mean_on_a_line_is_the_mean_of_places() -> None:
    places, weights = [2.0, 7.0, 9.0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    mean = frechet_mean(LORENTZ, on_a_line(places), weights)
    assert bool(mean.converged), mean.reason
    assert abs(math.asinh(float(mean.point[2])) - 4.9) < 1e-11


def test_transport_keeps_lengths_far_out() -> None:
    first, second = on_a_line([8.0, 10.0])
    tangent = LORENTZ.log(first, on_a_line([9.0])[0])
    carried = LORENTZ.transport(first, second, tangent)
    assert abs(float(LORENTZ.norm(second, carried)) - 1) < 1e-9


@pytest.mark.parametrize("length", [0.1, 2.0, 5.0])
def test_the_ball_gives_back_what_it_takes(length: float) -> None:
    values = torch.tensor([[0.6 * length, 0.8 * length]], dtype=torch.float64)
    lifted = BALL.lift(values)
    assert bool(lifted.defined)
    torch.testing.assert_close(BALL.lower(lifted.point, lifted.rest), values, rtol=1e-12, atol=0)


def test_the_ball_says_what_has_no_place_in_it() -> None:
    lifted = BALL.lift(torch.tensor([[5.1, 0.0], [4.9, 0.0], [torch.nan, 0.0]], dtype=torch.float64))
    assert lifted.defined.tolist() == [False, True, False]
    assert "longer than 5" in BALL.undefined
