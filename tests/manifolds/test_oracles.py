"""The manifolds against geoopt, scipy and POT, and against closed forms."""

import math

import numpy as np
import ot.gaussian
import pytest
import scipy.linalg
import torch
from torch import Tensor

from merge_models.manifolds.base import CutLocusError, GeooptSphere
from merge_models.manifolds.gaussians import BuresWasserstein, barycenter, covariance_root, optimal_map
from merge_models.manifolds.rotations import SpecialOrthogonal, cayley, inverse_cayley, rotation_log
from merge_models.manifolds.simplex import ProbabilitySimplex
from merge_models.manifolds.sphere import Sphere

torch.set_num_threads(1)
every_seed = pytest.mark.parametrize("seed", range(3))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(seed: int, *batch: int, size: int = 5) -> Tensor:
    factor = normal(seed, *batch, size, size)
    return factor @ factor.mT + 0.1 * torch.eye(size, dtype=torch.float64)


def turn(*angles: float) -> Tensor:
    planes = [[[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]] for angle in angles]
    return torch.block_diag(*torch.tensor(planes, dtype=torch.float64))


@every_seed
def test_sphere_agrees_with_geoopt_at_ordinary_angles(seed: int) -> None:
    ours, theirs = Sphere(), GeooptSphere()
    first, second = ours.project(normal(seed, 2, 10, 6))
    torch.testing.assert_close(ours.dist(first, second), theirs.dist(first, second))
    torch.testing.assert_close(ours.log(first, second), theirs.logmap(first, second))
    tangent = ours.log(first, second) / 2
    torch.testing.assert_close(ours.exp(first, tangent), theirs.expmap(first, tangent))


@pytest.mark.parametrize("angle", [1e-8, 1e-6, 1e-4, 1.0, math.pi - 1e-4, math.pi - 1e-8])
def test_sphere_angles_where_geoopt_loses_them(angle: float) -> None:
    start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    tangent = torch.tensor([0.0, angle, 0.0], dtype=torch.float64)
    end = Sphere().exp(start, tangent)
    torch.testing.assert_close(Sphere().log(start, end), tangent, rtol=1e-14, atol=0)
    assert abs(float(Sphere().dist(start, end)) - angle) <= 1e-15 + 1e-15 * angle


def test_antipodes_have_no_logarithm() -> None:
    point = Sphere().project(normal(0, 3, 50))
    with pytest.raises(CutLocusError, match="3 of 3 pairs"):
        Sphere().log(point, -point)
    tangent, cut = Sphere().minimal_log(point, -point)
    assert bool(cut.all()) and not bool(tangent.any())
    torch.testing.assert_close(Sphere().dist(point, -point), torch.full((3,), math.pi).double())


@every_seed
@pytest.mark.parametrize("size", [2, 3, 6])
def test_rotation_exp_and_log_agree_with_scipy(seed: int, size: int) -> None:
    group = SpecialOrthogonal(size)
    first, second = group.project(normal(seed, 2, size, size))
    expected = scipy.linalg.logm(np.asarray(first.mT @ second))
    skew, cut = rotation_log(first.mT @ second)
    assert not bool(cut)
    torch.testing.assert_close(skew, torch.from_numpy(np.real(expected)), atol=1e-10, rtol=1e-10)
    reached = np.asarray(first) @ scipy.linalg.expm(np.asarray(skew))
    torch.testing.assert_close(group.exp(first, first @ skew), torch.from_numpy(reached))
    length = torch.tensor(np.linalg.norm(np.real(expected)))
    torch.testing.assert_close(group.dist(first, second), length)


@every_seed
def test_rotation_projection_is_scipys_polar_factor(seed: int) -> None:
    matrix = normal(seed, 5, 5)
    polar, _ = scipy.linalg.polar(np.asarray(matrix))
    projected = SpecialOrthogonal(5).project(matrix)
    if np.linalg.det(polar) > 0:
        torch.testing.assert_close(projected, torch.from_numpy(polar))
    assert abs(float(torch.linalg.det(projected)) - 1) < 1e-12


@pytest.mark.parametrize("angle", [1e-8, 1e-3, 1.0, 3.0, math.pi - 1e-3, math.pi - 1e-6])
def test_rotation_log_is_right_from_tiny_angles_to_nearly_pi(angle: float) -> None:
    basis = SpecialOrthogonal(6).project(normal(0, 6, 6))
    rotation = basis @ turn(angle, 0.7, angle) @ basis.mT
    skew, cut = rotation_log(rotation)
    assert not bool(cut)
    margin = min(1.0, math.pi - angle)
    torch.testing.assert_close(torch.linalg.matrix_exp(skew), rotation, atol=1e-14 / margin, rtol=0)
    length = math.sqrt(2 * (2 * angle**2 + 0.7**2))
    assert abs(float(skew.norm()) - length) < 1e-14 / margin


def test_a_turn_by_pi_has_a_distance_but_no_logarithm() -> None:
    group, identity = SpecialOrthogonal(4), torch.eye(4).double()
    half = turn(math.pi, 0.3)
    assert abs(float(group.dist(identity, half)) - math.sqrt(2 * (math.pi**2 + 0.09))) < 1e-12
    with pytest.raises(CutLocusError, match="a rotation by pi"):
        group.log(identity, half)
    with pytest.raises(CutLocusError, match="1 of 2 rotations have the eigenvalue -1"):
        inverse_cayley(torch.stack([identity, half]))


@every_seed
def test_cayley_and_its_inverse(seed: int) -> None:
    skew = normal(seed, 3, 5, 5)
    skew = skew - skew.mT
    rotation = cayley(skew)
    assert SpecialOrthogonal(5).check(rotation, tolerance=1e-12) is None
    torch.testing.assert_close(inverse_cayley(rotation), skew, atol=1e-10, rtol=1e-10)
    angle = 0.4
    torch.testing.assert_close(inverse_cayley(turn(angle))[1, 0], torch.tensor(math.tan(angle / 2)).double())


def test_a_single_block_keeps_its_axis() -> None:
    assert SpecialOrthogonal(3, blocks=1).check(torch.eye(3).expand(1, 3, 3)) is None
    with pytest.raises(ValueError, match="d = 0, blocks = None"):
        SpecialOrthogonal(0)


@every_seed
def test_gaussians_agree_with_pot(seed: int) -> None:
    first, second = covariances(seed, 2)
    zero = torch.zeros(5, dtype=torch.float64)
    distance = torch.as_tensor(ot.gaussian.bures_wasserstein_distance(zero, zero, first, second))
    torch.testing.assert_close(BuresWasserstein().dist(first, second), distance.squeeze())
    mapping = ot.gaussian.bures_wasserstein_mapping(zero, zero, first, second)[0]
    torch.testing.assert_close(optimal_map(first, second), mapping)


@every_seed
def test_barycenter_agrees_with_pot_and_is_a_fixed_point(seed: int) -> None:
    points = covariances(seed, 4)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mean = barycenter(points, weights)
    assert bool(mean.converged & mean.unique), mean.reason
    zeros = torch.zeros(4, 5, dtype=torch.float64)
    expected = ot.gaussian.bures_wasserstein_barycenter(zeros, points, weights, eps=1e-10)[1]
    torch.testing.assert_close(mean.point, torch.as_tensor(expected), atol=1e-7, rtol=1e-7)
    root = covariance_root(mean.point)
    inner = covariance_root(root @ points @ root)
    torch.testing.assert_close((weights[:, None, None] * inner).sum(dim=0), mean.point)


def test_commuting_covariances_have_the_closed_form() -> None:
    basis = SpecialOrthogonal(5).project(normal(0, 5, 5))
    variances = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variances[0, 2] = 0
    mean = barycenter((basis * variances.unsqueeze(-2)) @ basis.mT)
    assert bool(mean.converged) and int(mean.iterations) <= 1
    expected = (basis * variances.sqrt().mean(dim=0).square()) @ basis.mT
    torch.testing.assert_close(mean.point, expected)


def test_singular_covariances_have_distances_and_geodesics() -> None:
    first, second = torch.diag_embed(torch.eye(2).double())
    space = BuresWasserstein()
    torch.testing.assert_close(space.dist(first, second), torch.tensor(2.0).sqrt().double())
    torch.testing.assert_close(space.geodesic(first, second, 0.5), torch.eye(2).double() / 4)
    with pytest.raises(CutLocusError, match="mass that no map can reach"):
        space.log(first, second)
    torch.testing.assert_close(optimal_map(first, 4 * first), torch.diag(torch.tensor([2.0, 1.0])).double())


def test_optimal_map_restores_the_spread_of_averaged_rows() -> None:
    rows = normal(0, 3, 400, 4)
    centred = rows - rows.mean(dim=1, keepdim=True)
    each = centred.mT @ centred / 400
    flat = centred.mean(dim=0)
    goal = barycenter(each).point
    pushed = flat @ optimal_map(flat.mT @ flat / 400, goal)
    torch.testing.assert_close(pushed.mT @ pushed / 400, goal)


@every_seed
def test_simplex_distance_is_its_closed_form_and_half_its_square_is_kl(seed: int) -> None:
    space = ProbabilitySimplex()
    first, second = space.project(normal(seed, 2, 8).exp())
    expected = 2 * torch.arccos((first * second).sqrt().sum())
    torch.testing.assert_close(space.dist(first, second), expected)
    near = space.geodesic(first, second, 1e-3)
    divergence = (first * (first / near).log()).sum()
    assert abs(float(2 * divergence / space.dist(first, near) ** 2) - 1) < 1e-2


def test_simplex_takes_zeros() -> None:
    space = ProbabilitySimplex()
    corners = torch.eye(3).double()
    torch.testing.assert_close(space.dist(corners[0], corners[1]), torch.tensor(math.pi).double())
    middle = space.geodesic(corners[0], corners[1], 0.5)
    torch.testing.assert_close(middle, torch.tensor([0.5, 0.5, 0.0]).double())
    torch.testing.assert_close(space.exp(corners[0], space.log(corners[0], middle)), middle)
