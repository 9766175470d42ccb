"""The unit sphere, accurate from 1e-8 rad to the antipode.

geoopt's `Sphere` takes arccos of a clamped cosine, which loses every angle below 4.5e-4 rad in float64 and
1.4e-2 rad in float32; sibling fine-tunes are closer than that. Here angles come from half chords
(`arcs.angle_between`) and logarithms from `other - point`.
"""

import math

import torch
from torch import Tensor

from merge_models.manifolds.arcs import angle_between, sinc
from merge_models.manifolds.base import AbstractManifold, GeooptSphere, weighted_sum


class Sphere(AbstractManifold, GeooptSphere):
    """Unit vectors `[..., n]` with the angle as distance.

    `log` of an antipode raises `CutLocusError`; `minimal_log` reports it. The mean is unique when
    an open hemisphere holds all points.
    """

    name = "Sphere"
    ndim = 1
    reversible = False

    def projx(self, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        # The zero vector has no direction; dividing by 1 leaves it zero, and `check` refuses it.
        return x / torch.where(length > 0, length, torch.ones_like(length))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - (x * u).sum(dim=-1, keepdim=True) * x

    egrad2rgrad = proju

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        length = u.norm(dim=-1, keepdim=True)
        return self.projx(torch.cos(length) * x + sinc(length) * u)

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport along the geodesic (Absil, Mahony, Sepulchre 2008, section 8.1)."""
        return v - (y * v).sum(-1, keepdim=True) / (1 + (x * y).sum(-1, keepdim=True)) * (x + y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        angle = angle_between(x, y)
        return angle.unsqueeze(-1) if keepdim else angle

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        # Projecting the difference, not `other`, keeps the digits of a small angle.
        across = self.proju(point, other - point)
        sine = across.norm(dim=-1)
        cosine = (point * other).sum(dim=-1)
        cut = (sine <= 16 * torch.finfo(sine.dtype).eps) & (cosine < 0)
        stretch = torch.atan2(sine, cosine) / torch.where(sine > 0, sine, torch.ones_like(sine))
        stretch = torch.where(cut, torch.zeros_like(stretch), stretch)
        return stretch.unsqueeze(-1) * across, cut

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_ones(point.shape[:-1])

    def mean_start(self, points: Tensor, weights: Tensor) -> Tensor:
        """The normalised flat mean, or where that vanishes (antipodes) the heaviest point."""
        flat = weighted_sum(weights, points)
        vanishes = flat.norm(dim=-1, keepdim=True) <= 1e-12
        if bool(vanishes.any()):
            heaviest = points.take_along_dim(weights.argmax(-1)[..., None, None], dim=-2).squeeze(-2)
            flat = torch.where(vanishes, heaviest, flat)
        return self.projx(flat)

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Newton's step, where the Hessian is safely positive; else the mean of the logs.

        The Hessian of half the mean squared distance is `a I + sum_i b_i v_i v_i^T`, with v_i the unit
        logs, a = sum_i w_i t_i cot t_i, b_i = w_i (1 - t_i cot t_i) (Pennec 2018, "Barycentric subspace
        analysis on manifolds"), so it is inverted by an N x N system.
        """
        angle = logs.norm(dim=-1)
        # t cot t -> 1 at 0, and cos t / sinc t is that quotient without the division by zero.
        cotangent = torch.cos(angle) / sinc(angle).clamp_min(torch.finfo(angle.dtype).tiny)
        isotropic = (weights * cotangent).sum(dim=-1)
        safe = isotropic > 0.1
        isotropic = torch.where(safe, isotropic, torch.ones_like(isotropic))[..., None]
        bend = (weights * (1 - cotangent)).clamp_min(0).sqrt()
        rays = (bend / torch.where(angle > 0, angle, torch.ones_like(angle))).unsqueeze(-1) * logs
        system = rays @ rays.mT + torch.diag_embed(isotropic.expand_as(weights))
        inner = torch.linalg.solve(system, rays @ gradient.unsqueeze(-1))
        newton = (gradient - (rays.mT @ inner).squeeze(-1)) / isotropic
        return torch.where(safe.unsqueeze(-1), newton, gradient)

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Whether an open hemisphere holds all points (Afsari 2011, Theorem 2.1), by showing its centre.

        The centre that meets each point at the same cosine solves `U U^T a = 1`; it exists for all
        independent points, and what it proves is tested on the points themselves.
        """
        near = ((angle_between(mean.unsqueeze(-2), points) < math.pi / 2 - 1e-9) | (weights == 0)).all(dim=-1)
        if bool(near.all()):
            return near  # the mean itself is such a centre
        points = torch.where((weights > 0).unsqueeze(-1), points, torch.zeros_like(points))
        ridge = 1e-10 * torch.eye(weights.shape[-1], dtype=points.dtype, device=points.device)
        ones = torch.ones_like(weights).unsqueeze(-1)
        centre = weighted_sum(torch.linalg.solve(points @ points.mT + ridge, ones)[..., 0], points)
        inside = (points * centre.unsqueeze(-2)).sum(dim=-1) > 0.5
        return (inside | (weights == 0)).all(dim=-1)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if point.shape[-1] < 2:
            return f"a sphere needs vectors of length 2 or more, not {point.shape[-1]}"
        gap = (point.norm(dim=-1) - 1).abs()
        if gap.numel() and float(gap.max()) > tolerance:
            return f"a norm is off 1 by {float(gap.max()):.3g} (allowed {tolerance:.3g})"
        return None
