"""The Fréchet mean's certificate: what it says when things are hard."""

import math

import pytest
import torch

from merge_models.manifolds.frechet import FrechetMeanError, frechet_mean
from merge_models.manifolds.gaussians import BuresWasserstein
from merge_models.manifolds.rotations import SpecialOrthogonal
from merge_models.manifolds.simplex import ProbabilitySimplex
from merge_models.manifolds.sphere import Sphere

torch.set_num_threads(1)


def test_wide_spread_converges_by_newton_in_few_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    points = Sphere().project(torch.randn(200, 5, 64, generator=generator, dtype=torch.float64))
    mean = frechet_mean(Sphere(), points)
    assert bool(mean.converged.all() & mean.unique.all()), mean.reason
    assert int(mean.iterations.max()) <= 6
    assert float(mean.residual.max()) < 2e-12


def test_nearly_antipodal_points_have_the_middle_between_them() -> None:
    angle = torch.tensor(math.pi - 1e-6, dtype=torch.float64)
    points = torch.stack([torch.eye(3).double()[0], torch.stack([angle.cos(), angle.sin(), 0 * angle])])
    mean = frechet_mean(Sphere(), points)
    assert bool(mean.converged & mean.unique), mean.reason
    torch.testing.assert_close(mean.point, torch.eye(3).double()[1], atol=1e-6, rtol=0)


def test_points_all_round_the_sphere_have_no_unique_mean() -> None:
    angles = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    points = torch.stack([angles.cos(), angles.sin(), 0 * angles], dim=-1)
    mean = frechet_mean(Sphere(), points)
    assert not bool(mean.unique)
    assert "no guarantee that the mean is unique" in mean.reason


def test_not_converging_is_reported_per_element() -> None:
    generator = torch.Generator().manual_seed(0)
    points = SpecialOrthogonal(3).project(torch.randn(2, 4, 3, 3, generator=generator).double())
    points[0] = points[0, :1]
    mean = frechet_mean(SpecialOrthogonal(3), points, max_iterations=1)
    assert mean.converged.tolist() == [True, False]
    assert "1 of 2 did not converge in 1 iterations (largest residual" in mean.reason


def test_one_bad_element_does_not_stop_the_batch() -> None:
    points = torch.eye(4).double()[:2].repeat(3, 1, 1)
    points[1, 1] = -points[1, 0]
    mean = frechet_mean(Sphere(), points)
    assert mean.converged.tolist() == [True, False, True]
    assert bool(torch.isfinite(mean.point).all())
    assert "1 of 3 have a point on the cut locus" in mean.reason


def test_weights_broadcast_and_zero_weights_drop_points() -> None:
    generator = torch.Generator().manual_seed(0)
    points = ProbabilitySimplex().project(torch.rand(2, 3, 5, generator=generator).double())
    weights = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    mean = frechet_mean(ProbabilitySimplex(), points.unsqueeze(1), weights)
    assert mean.point.shape == (2, 2, 5)
    torch.testing.assert_close(mean.point[0, 0], frechet_mean(ProbabilitySimplex(), points[0, :2]).point)
    torch.testing.assert_close(mean.point[:, 1], points[:, 2])


def test_float32_points_are_averaged_in_float64() -> None:
    points = Sphere().project(torch.ones(2, 3, 8) + torch.rand(2, 3, 8))
    assert frechet_mean(Sphere(), points).point.dtype == torch.float64


def test_an_empty_batch_has_an_empty_mean() -> None:
    mean = frechet_mean(Sphere(), torch.zeros(0, 3, 8))
    assert mean.point.shape == (0, 8)


def test_singular_covariances_share_a_barycenter() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    factors[..., 4:, :] = 0
    mean = frechet_mean(BuresWasserstein(), factors @ factors.mT)
    assert bool(mean.converged & mean.unique), mean.reason
    assert not bool(mean.point[4:].any())


@pytest.mark.parametrize(
    ("points", "weights", "words"),
    [
        (torch.ones(3), None, r"not \(3,\)"),
        (torch.ones(2, 3), torch.ones(3), r"2 points take 2 weights, not \(3,\)"),
        (torch.ones(2, 3), torch.tensor([1.0, -1.0]), "not negative"),
        (torch.ones(2, 3), torch.tensor([1.0, math.nan]), "finite"),
    ],
)
def test_what_makes_no_sense_is_refused(
    points: torch.Tensor, weights: torch.Tensor | None, words: str
) -> None:
    with pytest.raises(FrechetMeanError, match=words):
        frechet_mean(Sphere(), points, weights)
