"""The geometry of the unit sphere, accurate from 1e-8 rad to the antipode.

geoopt's `Sphere` takes arccos of a clamped cosine, which loses every angle below 4.5e-4 rad in float64 and
1.4e-2 rad in float32; sibling fine-tunes are closer than that. Here angles come from half chords
(`arcs.angle_between`) and logarithms from `other - point`. This module needs torch alone, so that a mean can
be had without the time that geoopt takes to import; `sphere.Sphere` is the same as a geoopt manifold.
"""

import math

import torch
from torch import Tensor

from merge_models.manifolds.arcs import angle_between, sinc, weighted_sum


class UnitSphere:
    """What a Fréchet mean of unit vectors `[..., n]` needs; arguments as in geoopt."""

    name = "Sphere"
    ndim = 1

    def projx(self, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True)
        # The zero vector has no direction; it is left zero, and `check` refuses it.
        return x / length.clamp_min(torch.finfo(length.dtype).tiny)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u - (x * u).sum(dim=-1, keepdim=True) * x

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        length = u.norm(dim=-1, keepdim=True)
        return self.projx(torch.cos(length) * x + sinc(length) * u)

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        del x
        return (u * (u if v is None else v)).sum(dim=-1, keepdim=keepdim)

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        del x
        return u.norm(dim=-1, keepdim=keepdim)

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        # Projecting the difference, not `other`, keeps the digits of a small angle.
        across = self.proju(point, other - point)
        sine = across.norm(dim=-1)
        cosine = (point * other).sum(dim=-1)
        cut = (sine <= 16 * torch.finfo(sine.dtype).eps) & (cosine < 0)
        tiny = torch.finfo(sine.dtype).tiny
        stretch = (torch.atan2(sine, cosine) / sine.clamp_min(tiny)).masked_fill(cut, 0)
        return stretch.unsqueeze(-1) * across, cut

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_ones(point.shape[:-1])

    def safe_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns the mean of the logs, which never leads away from the mean: curvature is positive."""
        del point, logs, weights
        return gradient

    def mean_start(self, points: Tensor, weights: Tensor) -> Tensor:
        """Returns the normalised flat mean, or where that vanishes (antipodes) the heaviest point."""
        flat = weighted_sum(weights, points)
        vanishes = flat.norm(dim=-1, keepdim=True) <= 1e-12
        if bool(vanishes.any()):
            heaviest = points.take_along_dim(weights.argmax(-1)[..., None, None], dim=-2).squeeze(-2)
            flat = torch.where(vanishes, heaviest, flat)
        return self.projx(flat)

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns Newton's step, where the Hessian is safely positive; else the mean of the logs.

        The Hessian of half the mean squared distance is `a I + sum_i b_i v_i v_i^T`, with v_i the unit
        logs, a = sum_i w_i t_i cot t_i, b_i = w_i (1 - t_i cot t_i) (Pennec 2018, "Barycentric subspace
        analysis on manifolds"), so it is inverted by an N x N system.
        """
        angle = logs.norm(dim=-1)
        # t cot t -> 1 at 0, and cos t / sinc t is that quotient without the division by zero.
        tiny = torch.finfo(angle.dtype).tiny
        cotangent = torch.cos(angle) / sinc(angle).clamp_min(tiny)
        curvature = (weights * cotangent).sum(dim=-1, keepdim=True)
        isotropic = curvature.clamp_min(0.1)
        bend = (weights * (1 - cotangent)).clamp_min(0).sqrt()
        rays = (bend / angle.clamp_min(tiny)).unsqueeze(-1) * logs
        system = rays @ rays.mT
        system.diagonal(dim1=-2, dim2=-1).add_(isotropic)
        inner = torch.linalg.solve(system, rays @ gradient.unsqueeze(-1))
        newton = (gradient - (rays.mT @ inner).squeeze(-1)) / isotropic
        return torch.where(curvature > 0.1, newton, gradient)

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Returns whether an open hemisphere holds all points (Afsari 2011, Theorem 2.1), by showing its
        centre.

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
