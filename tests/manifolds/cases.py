"""The table of manifolds that the laws in `test_manifold_laws.py` run over."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.euclidean import Euclidean
from merge_models.manifolds.gaussians import BuresWasserstein, DiagonalBuresWasserstein
from merge_models.manifolds.hyperbolic import Lorentz, PoincareBall
from merge_models.manifolds.positive_definite import PositiveDefinite
from merge_models.manifolds.rotations import SpecialOrthogonal
from merge_models.manifolds.simplex import ProbabilitySimplex
from merge_models.manifolds.sphere import Sphere
from merge_models.manifolds.stiefel import Stiefel

torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    """A manifold, the shape of its points, how to make ambient points and isometries, and bad points."""

    name: str
    manifold: AbstractManifold
    event: tuple[int, ...]
    ambient: Callable[[Tensor], Tensor]
    isometry: Callable[[torch.Generator], Callable[[Tensor], Tensor]]
    bad: tuple[tuple[Tensor, str], ...]
    reach: float = 1.0
    transports: bool = True

    def points(self, seed: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(*batch, *self.event, generator=generator, dtype=torch.float64)
        return self.manifold.project(self.ambient(noise)).to(dtype)

    def tangents(self, seed: int, points: Tensor) -> Tensor:
        """Tangents of length `reach`, well inside the injectivity radius."""
        generator = torch.Generator().manual_seed(1000 + seed)
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float64)
        tangents = self.manifold.proju(points.double(), noise)
        lengths = self.manifold.norm(points.double(), tangents, keepdim=True)
        return (self.reach * tangents / lengths).to(points.dtype)


def same(noise: Tensor) -> Tensor:
    return noise


def positive_definite(noise: Tensor) -> Tensor:
    return noise @ noise.mT / noise.shape[-1] + 0.3 * torch.eye(noise.shape[-1]).to(noise)


def random_rotation(generator: torch.Generator, *shape: int) -> Tensor:
    square = (*shape, shape[-1])
    noise = torch.randn(square, generator=generator, dtype=torch.float64)
    return torch.linalg.matrix_exp(noise - noise.mT)


def turn_vectors(size: int) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    def make(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        rotation = random_rotation(generator, size)
        return lambda point: point @ rotation.to(point)

    return make


def turn_rotations(*shape: int) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    def make(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        before, after = random_rotation(generator, *shape), random_rotation(generator, *shape)
        return lambda point: before.to(point) @ point @ after.to(point)

    return make


def turn_covariances(size: int) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    def make(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        rotation = random_rotation(generator, size)
        return lambda point: rotation.to(point) @ point @ rotation.mT.to(point)

    return make


def turn_frames(size: int) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    def make(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        rotation = random_rotation(generator, size)
        return lambda point: rotation.to(point) @ point

    return make


def turn_hyperboloid(size: int) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    """A rotation of space, then a boost: both keep the Minkowski form."""

    def make(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        whole = torch.eye(size + 1, dtype=torch.float64)
        whole[1:, 1:] = random_rotation(generator, size)
        boost = torch.eye(size + 1, dtype=torch.float64)
        boost[0, 0] = boost[1, 1] = math.cosh(0.5)
        boost[0, 1] = boost[1, 0] = math.sinh(0.5)
        return lambda point: point @ (whole @ boost).to(point)

    return make


def near_frame(noise: Tensor) -> Tensor:
    """Frames near each other, as logarithms of far ones are not unique."""
    rows, columns = noise.shape[-2:]
    return torch.eye(rows)[:, :columns].to(noise) + 0.25 * noise


def into_ball(noise: Tensor) -> Tensor:
    return 0.9 * noise / (1 + noise.norm(dim=-1, keepdim=True))


def permute_entries(size: int) -> Callable[[torch.Generator], Callable[[Tensor], Tensor]]:
    def make(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        order = torch.randperm(size, generator=generator)
        return lambda point: point[..., order]

    return make


REFLECTION = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
NAN = torch.full((4, 4), torch.nan, dtype=torch.float64)
CASES = [
    Case(
        "sphere",
        Sphere(),
        (7,),
        same,
        turn_vectors(7),
        (
            (torch.ones(7), "norm is off 1 by 1.65"),
            (NAN, "16 of 16 entries are NaN"),
            (torch.ones(1), "length 2 or more"),
            (torch.ones(7, dtype=torch.int64), "floating"),
        ),
    ),
    Case(
        "rotations",
        SpecialOrthogonal(4),
        (4, 4),
        same,
        turn_rotations(4),
        (
            (2 * torch.eye(4), "off I by 3"),
            (REFLECTION, "1 of 1 have determinant -1"),
            (torch.eye(3), "a rotation here is (4, 4), not (3, 3)"),
            (torch.ones(4), "2 dimensions or more"),
        ),
    ),
    Case(
        "rotation blocks",
        SpecialOrthogonal(3, blocks=5),
        (5, 3, 3),
        same,
        turn_rotations(5, 3),
        ((torch.eye(3).expand(4, 3, 3), "a rotation here is (5, 3, 3)"),),
    ),
    Case(
        "covariances",
        BuresWasserstein(),
        (4, 4),
        positive_definite,
        turn_covariances(4),
        (
            (-torch.eye(4), "an eigenvalue is negative: -1"),
            (torch.ones(4, 4).triu(), "not symmetric: off by 1"),
            (torch.ones(4, 3), "square, not (4, 3)"),
        ),
        reach=0.3,
        transports=False,
    ),
    Case(
        "variances",
        DiagonalBuresWasserstein(),
        (6,),
        torch.square,
        permute_entries(6),
        ((torch.tensor([1.0, -0.5]), "a variance is negative: -0.5"),),
        reach=0.01,
    ),
    Case(
        "simplex",
        ProbabilitySimplex(),
        (6,),
        torch.exp,
        permute_entries(6),
        (
            (torch.tensor([1.5, -0.5]), "a probability is negative: -0.5"),
            (torch.tensor([0.6, 0.6]), "a sum is off 1 by 0.2"),
        ),
        reach=0.1,
    ),
    Case("euclidean", Euclidean(), (5,), same, turn_vectors(5), ((NAN, "16 of 16 entries are NaN"),)),
    Case(
        "positive definite",
        PositiveDefinite(),
        (4, 4),
        positive_definite,
        turn_covariances(4),
        (
            (torch.zeros(4, 4), "an eigenvalue is not positive: 0"),
            (torch.ones(4, 4).triu(), "not symmetric: off by 1"),
            (torch.ones(4, 3), "square, not (4, 3)"),
        ),
    ),
    Case(
        "stiefel",
        Stiefel(),
        (7, 3),
        near_frame,
        turn_frames(7),
        (
            (2 * torch.eye(7)[:, :3], "U^T U is off I by 3"),
            (torch.eye(3), "more rows than columns, not (3, 3)"),
        ),
        reach=0.7,
        transports=False,
    ),
    Case(
        "stiefel, nearly square",
        Stiefel(),
        (5, 4),
        near_frame,
        turn_frames(5),
        (),
        reach=0.7,
        transports=False,
    ),
    Case(
        "hyperboloid",
        Lorentz(),
        (6,),
        same,
        turn_hyperboloid(5),
        (
            (torch.ones(6), "off the hyperboloid by"),
            (torch.ones(1), "length 2 or more"),
        ),
    ),
    Case(
        "poincare ball",
        PoincareBall(),
        (5,),
        into_ball,
        turn_vectors(5),
        ((torch.ones(5), "a norm is 2.24, and the ball is open at 1"),),
    ),
]
