"""Frames of orthonormal columns, with the canonical metric: geoopt has its retraction, not its geodesics."""

import math

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.lifting import Lifted
from merge_models.manifolds.polar import polar_factors
from merge_models.manifolds.rotations import rotation_log, skew_part

_ROUNDS = 100


class Stiefel(AbstractManifold):
    """Frames `[..., n, p]`, `n > p`, with `U^T U = I` and the metric `tr(D^T (I - U U^T / 2) D)`.

    `exp` is the geodesic in closed form (Edelman, Arias & Smith 1998, Theorem 2.1); `log` the algebraic
    iteration of Zimmermann 2017 (Algorithm 3.1), reported as cut where it does not converge. The mean is
    unique when all points lie within 1.39 of it, half the injectivity radius (at least 0.89 pi; Rentmeesters
    2013).

    >>> frame = torch.eye(3, dtype=torch.float64)[:, :1]
    >>> Stiefel().dist(frame, torch.eye(3, dtype=torch.float64)[:, 1:2])
    tensor(1.5708, dtype=torch.float64)
    """

    name = "Stiefel"
    ndim = 2
    reversible = False
    event = "tall"
    undefined = "has no full column rank"

    def projx(self, x: Tensor) -> Tensor:
        """Returns the polar factor, which is the nearest frame."""
        return polar_factors(x)[0]

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - x @ ((x.mT @ u + u.mT @ x) / 2)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return u - x @ u.mT @ x

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        other = u if v is None else v
        whole = (u * other).sum(dim=(-2, -1))
        product = whole - ((x.mT @ u) * (x.mT @ other)).sum(dim=(-2, -1)) / 2
        return product[..., None, None] if keepdim else product

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        return self.inner(x, u, keepdim=keepdim).clamp_min(0).sqrt()

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        inside = skew_part(x.mT @ u)
        basis, upper = torch.linalg.qr(u - x @ (x.mT @ u))
        columns = x.shape[-1]
        top = torch.cat([inside, -upper.mT], -1)
        bottom = torch.cat([upper, torch.zeros_like(upper @ upper.mT)], -1)
        turned = torch.linalg.matrix_exp(torch.cat([top, bottom], -2))[..., :columns]
        return self.projx(x @ turned[..., :columns, :] + basis @ turned[..., columns:, :])

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        return self.projx(x + u)

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        shape = torch.broadcast_shapes(point.shape, other.shape)
        point, other = point.expand(shape), other.expand(shape)
        columns = shape[-1]
        basis = _beside(point, other)
        first = torch.cat([point.mT @ other, basis.mT @ other], -2)
        turned = _completed(first)
        angle = turned
        for _ in range(_ROUNDS):
            angle, cut = rotation_log(turned)
            corner = angle[..., columns:, columns:]
            if bool((corner.abs().amax(dim=(-2, -1)) <= _small(corner)).all() | cut.all()):
                break
            back = torch.linalg.matrix_exp(-corner)
            turned = torch.cat([turned[..., :columns], turned[..., columns:] @ back], -1)
        angle, cut = rotation_log(turned)
        left = angle[..., columns:, columns:].abs().amax(dim=(-2, -1))
        cut = cut | (left > 1e3 * _small(angle))
        tangent = point @ angle[..., :columns, :columns] + basis @ angle[..., columns:, :columns]
        return torch.where(cut[..., None, None], torch.zeros_like(tangent), tangent), cut

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        return self.norm(x, self.logmap(x, y), keepdim=keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns projection onto the tangents at `y`; parallel transport has no closed form here."""
        del x
        return self.proju(y, v)

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_full(point.shape[:-2], math.sqrt(point.shape[-1]))

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        logs, cut = self.minimal_log(mean.unsqueeze(-3), points)
        near = (self.norm(mean.unsqueeze(-3), logs) < 0.445 * math.pi) & ~cut
        return (near | (weights == 0)).all(-1)

    def lift(self, values: Tensor) -> Lifted:
        """Takes tall matrices apart into a frame and a symmetric factor, `X = U S`."""
        return Lifted(*polar_factors(values))

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        return point @ rest

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if point.shape[-2] <= point.shape[-1]:
            return f"a frame has more rows than columns, not {tuple(point.shape[-2:])}"
        gap = (point.mT @ point - torch.eye(point.shape[-1]).to(point)).abs()
        if gap.numel() and float(gap.max()) > tolerance:
            return f"U^T U is off I by {float(gap.max()):.3g} (allowed {tolerance:.3g})"
        return None


def _small(matrix: Tensor) -> float:
    return 8 * math.sqrt(matrix.shape[-1]) * torch.finfo(matrix.dtype).eps


def _beside(point: Tensor, other: Tensor) -> Tensor:
    """Orthonormal columns, orthogonal to the frame, that span with it what both frames span."""
    rows, columns = point.shape[-2:]
    if rows >= 2 * columns:
        rest = other - point @ (point.mT @ other)
        # What is left of equal columns is rounding: random columns beside it keep the basis orthogonal.
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(point)
        noise = noise - point @ (point.mT @ noise)
        mixed = torch.cat([point.expand(*rest.shape[:-2], rows, columns), rest, noise.expand_as(rest)], -1)
        basis = torch.linalg.qr(mixed[..., : 2 * columns])[0][..., columns:]
        return basis - point @ (point.mT @ basis)
    return torch.linalg.qr(point, mode="complete")[0][..., columns:]


def _completed(first: Tensor) -> Tensor:
    """A rotation whose first columns are these, near the identity in the others (Zimmermann's start)."""
    size, columns = first.shape[-2:]
    whole = torch.linalg.qr(first, mode="complete")[0]
    rest = whole[..., columns:]
    left, _, right = torch.linalg.svd(rest[..., columns:, :])
    rest = rest @ (right.mT @ left.mT)
    turned = torch.cat([first, rest], -1)
    flip = torch.ones(size).to(first).repeat(*first.shape[:-2], 1)
    flip[..., -1] = torch.where(torch.linalg.det(turned) < 0, -1.0, 1.0).to(first)
    return turned * flip.unsqueeze(-2)
