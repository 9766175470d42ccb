"""Positive definite matrices that are far apart: laws of the mean that need no other code to check."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from merge_models.manifolds.frechet import frechet_mean
from merge_models.manifolds.positive_definite import PositiveDefinite

torch.set_num_threads(1)
SPD = PositiveDefinite()


def spread_matrices(seed: int, deviation: float, *batch: int, size: int = 6) -> Tensor:
    """Matrices whose eigenvalues are log-normal, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*batch, size, size, generator=generator, dtype=torch.float64)
    values = (deviation * torch.randn(*batch, size, generator=generator, dtype=torch.float64)).exp()
    axes = torch.linalg.qr(noise)[0]
    return (axes * values.unsqueeze(-2)) @ axes.mT


@pytest.mark.parametrize("deviation", [1.0, 2.0, 3.0, 4.0, 6.0])
def test_means_of_far_matrices_are_found(deviation: float) -> None:
    points = spread_matrices(0, deviation, 20, 4)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    mean = frechet_mean(SPD, points, weights)
    assert bool(mean.converged.all()) and int(mean.iterations.max()) <= 20, mean.reason
    # log det is affine along geodesics, so the mean's is the mean of the points'.
    wanted = (weights * torch.logdet(points)).sum(-1)
    # Rounding of the entries alone moves a matrix's log det by its condition number times eps.
    allowed = 1e-10 + 1e-15 * torch.linalg.cond(points).amax(-1)
    assert bool(((torch.logdet(mean.point) - wanted).abs() <= allowed).all())


def test_congruence_moves_the_mean_as_it_moves_the_points() -> None:
    points = spread_matrices(1, 2.0, 4)
    bend = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean, moved = frechet_mean(SPD, points).point, frechet_mean(SPD, bend @ points @ bend.mT).point
    assert float(SPD.dist(bend @ mean @ bend.mT, moved)) < 1e-10


def test_of_two_points_it_is_the_middle_of_the_geodesic() -> None:
    first, second = spread_matrices(3, 3.0, 2)
    mean = frechet_mean(SPD, torch.stack([first, second])).point
    ahead, back = SPD.dist(first, mean), SPD.dist(mean, second)
    assert abs(float(ahead - back)) < 1e-10 and abs(float(2 * ahead - SPD.dist(first, second))) < 1e-10


def test_small_eigenvalues_keep_their_digits() -> None:
    first = torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64))
    second = torch.diag(torch.tensor([1.0, 4e-12], dtype=torch.float64))
    assert abs(float(SPD.dist(first, second)) - 1.3862943611198906) < 1e-12  # log 4


def test_points_that_commute_have_their_geometric_mean_at_once() -> None:
    points = torch.diag_embed(torch.tensor([[1.0, 1e6], [4.0, 1e-6]], dtype=torch.float64))
    mean = frechet_mean(SPD, points)
    torch.testing.assert_close(mean.point, torch.diag(torch.tensor([2.0, 1.0]).double()), rtol=1e-12, atol=0)
    assert int(mean.iterations) == 0
