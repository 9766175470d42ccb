"""Every law that a manifold keeps, over every manifold in `manifold_cases.CASES`, seeds and dtypes."""

import pytest
import torch
from torch import Tensor

from merge_models.manifolds.base import NotOnManifoldError
from merge_models.manifolds.frechet import frechet_mean
from tests.manifolds.cases import CASES, Case

TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-4}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_seed = pytest.mark.parametrize("seed", range(3))
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@every_dtype
@every_seed
@every_case
def test_projection_is_idempotent_and_lands_on_the_manifold(
    case: Case, seed: int, dtype: torch.dtype
) -> None:
    points = case.points(seed, 5, dtype=dtype)
    assert case.manifold.check(points) is None
    close(case.manifold.project(points), points)


@every_dtype
@every_seed
@every_case
def test_exp_undoes_log(case: Case, seed: int, dtype: torch.dtype) -> None:
    first, second = case.points(seed, 2, 5, dtype=dtype)
    reached = case.manifold.exp(first, case.manifold.log(first, second))
    assert reached.dtype == dtype
    close(reached, second)


@every_dtype
@every_seed
@every_case
def test_log_undoes_exp(case: Case, seed: int, dtype: torch.dtype) -> None:
    points = case.points(seed, 5, dtype=dtype)
    tangents = case.tangents(seed, points)
    close(case.manifold.log(points, case.manifold.exp(points, tangents)), tangents)


@every_seed
@every_case
def test_log_keeps_the_digits_of_a_small_step(case: Case, seed: int) -> None:
    points = case.points(seed, 5)
    tangents = 1e-8 * case.tangents(seed, points)
    back = case.manifold.log(points, case.manifold.exp(points, tangents))
    torch.testing.assert_close(back, tangents, atol=1e-14, rtol=0)
    distance = case.manifold.dist(points, case.manifold.exp(points, tangents))
    expected = torch.full_like(distance, 1e-8 * case.reach)
    torch.testing.assert_close(distance, expected, atol=1e-14, rtol=0)


@every_dtype
@every_seed
@every_case
def test_dist_is_the_norm_of_log_and_symmetric(case: Case, seed: int, dtype: torch.dtype) -> None:
    first, second = case.points(seed, 2, 5, dtype=dtype)
    distance = case.manifold.dist(first, second)
    close(case.manifold.norm(first, case.manifold.log(first, second)), distance)
    close(case.manifold.dist(second, first), distance)


@every_seed
@every_case
def test_isometries_keep_distances_and_means(case: Case, seed: int) -> None:
    points = case.points(seed, 3, 4)
    points = case.manifold.geodesic(points[:, :1], points, 0.3)
    isometry = case.isometry(torch.Generator().manual_seed(seed))
    first, second = points[:, 0], points[:, 1]
    close(case.manifold.dist(isometry(first), isometry(second)), case.manifold.dist(first, second))
    mean = frechet_mean(case.manifold, points)
    assert bool(mean.converged.all()), mean.reason
    close(frechet_mean(case.manifold, isometry(points)).point, isometry(mean.point))


@every_seed
@every_case
def test_batch_equals_loop(case: Case, seed: int) -> None:
    first, second = case.points(seed, 2, 2, 3)
    logs = case.manifold.log(first, second)
    distances = case.manifold.dist(first, second)
    reached = case.manifold.exp(first, logs / 2)
    pairs = torch.stack([first, case.manifold.exp(first, logs / 4)], dim=2)
    means = frechet_mean(case.manifold, pairs)
    for row in range(2):
        for column in range(3):
            at = (row, column)
            log = case.manifold.log(first[at], second[at])
            close(logs[at], log)
            close(distances[at], case.manifold.dist(first[at], second[at]))
            close(reached[at], case.manifold.exp(first[at], log / 2))
            close(means.point[at], frechet_mean(case.manifold, pairs[at]).point)


@every_seed
@every_case
def test_geodesic_has_its_ends_and_constant_speed(case: Case, seed: int) -> None:
    manifold = case.manifold
    first, second = case.points(seed, 2, 5)
    close(manifold.geodesic(first, second, 0.0), first)
    close(manifold.geodesic(first, second, 1.0), second)
    times = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
    along = manifold.geodesic(first, second, times)
    close(manifold.dist(first, along), times * manifold.dist(first, second))


@every_seed
@pytest.mark.parametrize("case", [case for case in CASES if case.transports], ids=lambda case: case.name)
def test_transport_keeps_lengths_and_carries_the_geodesic(case: Case, seed: int) -> None:
    manifold = case.manifold
    first, second = case.points(seed, 2, 5)
    tangents = case.tangents(seed, first)
    carried = manifold.transport(first, second, tangents)
    close(manifold.proju(second, carried), carried)
    close(manifold.norm(second, carried), manifold.norm(first, tangents))
    ahead = manifold.transport(first, second, manifold.log(first, second))
    close(ahead, -manifold.log(second, first))


@every_case
def test_check_says_what_is_wrong(case: Case) -> None:
    for point, words in case.bad:
        reason = case.manifold.check(point)
        assert reason is not None and words in reason, reason
        with pytest.raises(NotOnManifoldError):
            case.manifold.require(point)
    case.manifold.require(case.points(0, 2))


@every_case
def test_geoopt_agrees_that_points_and_tangents_are_valid(case: Case) -> None:
    points = case.points(0, 3)
    case.manifold.assert_check_point_on_manifold(points)
    case.manifold.assert_check_vector_on_tangent(points, case.tangents(0, points))


@every_seed
@every_case
def test_mean_of_two_is_on_their_geodesic(case: Case, seed: int) -> None:
    points = case.points(seed, 3, 2)
    weights = torch.tensor([3.0, 1.0])
    mean = frechet_mean(case.manifold, points, weights)
    assert bool(mean.converged.all()), mean.reason
    close(mean.point, case.manifold.geodesic(points[:, 0], points[:, 1], 0.25))


@every_seed
@every_case
def test_mean_is_stationary_unique_and_keeps_no_order(case: Case, seed: int) -> None:
    points = case.points(seed, 3, 5)
    points = case.manifold.geodesic(points[:, :1], points, 0.3)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    mean = frechet_mean(case.manifold, points, weights)
    assert bool(mean.converged.all() & mean.unique.all()), mean.reason
    share = (weights / weights.sum(dim=-1, keepdim=True)).reshape(3, 5, *[1] * len(case.event))
    logs = case.manifold.log(mean.point.unsqueeze(1), points)
    assert float(case.manifold.norm(mean.point, (share * logs).sum(dim=1)).max()) < 1e-11
    again = frechet_mean(case.manifold, points.flip(1), weights.flip(1))
    close(again.point, mean.point)


@every_case
def test_mean_of_equal_points_is_that_point(case: Case) -> None:
    point = case.points(0, 2)
    for count in (1, 3):
        repeated = point.unsqueeze(1).expand(2, count, *case.event)
        mean = frechet_mean(case.manifold, repeated)
        assert bool(mean.converged.all() & mean.unique.all())
        close(mean.point, point)
