"""Raw numbers as points and back, for every manifold that recipes can name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from merge_models.manifolds import MANIFOLDS, UnknownManifoldError, find_manifold, frechet_mean
from merge_models.manifolds.hyperbolic import Lorentz, PoincareBall, to_lorentz
from merge_models.manifolds.positive_definite import PositiveDefinite
from merge_models.manifolds.stiefel import Stiefel

SHAPES = {"vector": (7,), "square": (5, 5), "tall": (8, 3)}
COVARIANCES = ("gaussians", "spd")
NOT_NEGATIVE = ("simplex", "diagonal_gaussians")


def raw(name: str, seed: int, count: int = 4) -> Tensor:
    """Raw numbers `[count, *event]` that the manifold has points of."""
    shape = SHAPES[find_manifold(name).event]
    values = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if name in COVARIANCES:
        return values @ values.mT + 0.1 * torch.eye(shape[-1])
    return values.abs() if name in NOT_NEGATIVE else values


@pytest.mark.parametrize("name", MANIFOLDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_lowering_undoes_lifting(name: str, seed: int) -> None:
    values = raw(name, seed)
    manifold = find_manifold(name).of(tuple(values.shape[1:]))
    lifted = manifold.lift(values)
    assert bool(lifted.defined.all()) and manifold.check(lifted.point) is None
    back = manifold.lower(lifted.point, lifted.rest)
    assert float((back - values).abs().max()) <= 1e-12 * float(values.abs().max())


@pytest.mark.parametrize("name", MANIFOLDS)
def test_what_has_no_point_is_said_to_have_none(name: str) -> None:
    values = raw(name, 3)
    manifold = find_manifold(name).of(tuple(values.shape[1:]))
    bad = values.clone()
    bad[1].view(-1)[0] = math.nan
    flat = name in ("euclidean", "lorentz", "poincare", "gaussians", "diagonal_gaussians")
    bad[2] = math.inf if flat else 0.0
    assert manifold.lift(bad).defined.tolist() == [True, False, False, True]
    assert manifold.undefined.split()[0] in ("is", "has", "holds")


@pytest.mark.parametrize("name", MANIFOLDS)
def test_shapes_that_have_no_points_are_refused_in_words(name: str) -> None:
    kind = find_manifold(name)
    assert kind.accepts(SHAPES[kind.event]) is None
    wrong = {"vector": (1,), "square": (3, 4), "tall": (3, 4)}[kind.event]
    assert "a point is" in str(kind.accepts(wrong))
    if kind.event != "vector":
        assert "of 1 dimension" in str(kind.accepts((9,)))


def test_unknown_manifolds_are_told_with_the_nearest() -> None:
    with pytest.raises(UnknownManifoldError, match="unknown manifold 'sfere'; did you mean 'sphere'"):
        find_manifold("sfere")


@pytest.mark.parametrize("name", MANIFOLDS)
def test_the_mean_of_near_raw_numbers_is_near_their_flat_mean(name: str) -> None:
    """To first order every manifold is flat; a chart that is no inverse would show at once."""
    values, step = raw(name, 5, 1), raw(name, 6, 3)
    near = values + 1e-5 * (step + step.mT if name in COVARIANCES else step)
    manifold = find_manifold(name).of(tuple(values.shape[1:]))
    lifted = manifold.lift(near)
    mean = frechet_mean(manifold, lifted.point)
    assert bool(mean.converged) and bool(mean.unique)
    merged = manifold.lower(mean.point, lifted.rest.mean(0))
    assert float((merged - near.mean(0)).abs().max()) < 1e-6


def test_affine_invariant_distances_are_those_of_generalised_eigenvalues() -> None:
    first, second = raw("spd", 1, 1)[0], raw("spd", 2, 1)[0]
    ratios = scipy.linalg.eigh(second.numpy(), first.numpy(), eigvals_only=True)
    expected = float(np.sqrt((np.log(ratios) ** 2).sum()))
    assert float(PositiveDefinite().dist(first, second)) == pytest.approx(expected, rel=1e-12)


def test_numbers_above_zero_have_their_geometric_mean() -> None:
    numbers, weights = torch.tensor([[0.3, 5.0, 17.0], [0.5, 0.3, 0.2]], dtype=torch.float64)
    mean = frechet_mean(PositiveDefinite(), numbers.reshape(3, 1, 1), weights)
    assert float(mean.point) == pytest.approx(math.exp(float(weights @ numbers.log())), rel=1e-12)


@pytest.mark.parametrize("spread", [1e-7, 0.3, 0.9])
def test_the_two_models_of_hyperbolic_space_are_isometric(spread: float) -> None:
    generator = torch.Generator().manual_seed(4)
    ball = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    ball = spread * ball / (ball.norm(dim=-1, keepdim=True) + 0.1)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    lorentz, poincare = Lorentz(), PoincareBall()
    distances = poincare.dist(ball[:1], ball)
    torch.testing.assert_close(lorentz.dist(*map(to_lorentz, (ball[:1], ball))), distances, rtol=1e-9, atol=0)
    there, here = (frechet_mean(m, p, weights) for m, p in ((lorentz, to_lorentz(ball)), (poincare, ball)))
    assert bool(there.converged) and bool(here.converged)
    torch.testing.assert_close(to_lorentz(here.point), there.point, rtol=1e-9, atol=1e-12)


def test_geodesics_of_frames_keep_their_speed() -> None:
    """The canonical norm of the velocity, by differences, is the distance at every time."""
    frames = Stiefel().projx(torch.eye(8)[:, :3].double() + 0.2 * raw("stiefel", 7, 2))
    first, second = frames
    length, step = float(Stiefel().dist(first, second)), 1e-5
    for time in (0.2, 0.5, 0.9):
        here = Stiefel().geodesic(first, second, time)
        velocity = (Stiefel().geodesic(first, second, time + step) - here) / step
        assert float(Stiefel().norm(here, Stiefel().proju(here, velocity))) == pytest.approx(length, rel=1e-4)


def test_means_of_frames_and_matrices_are_stationary() -> None:
    frames = Stiefel().projx(torch.eye(8)[:, :3].double() + 0.2 * raw("stiefel", 1, 5))
    matrices = raw("spd", 2, 5)
    for manifold, points in ((Stiefel(), frames), (PositiveDefinite(), matrices)):
        mean = frechet_mean(manifold, points)
        logs, _ = manifold.minimal_log(mean.point, points)
        assert bool(mean.converged) and float(manifold.norm(mean.point, logs.mean(0))) < 1e-11
