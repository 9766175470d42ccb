"""Flat space, as the one manifold whose Fréchet mean is the weighted mean."""

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold


class Euclidean(AbstractManifold):
    """Vectors `[..., n]` with their straight distance: what linear merging assumes.

    >>> import torch
    >>> Euclidean().geodesic(torch.zeros(2), torch.ones(2), 0.25)
    tensor([0.2500, 0.2500])
    """

    name = "Euclidean"
    ndim = 1
    reversible = True

    def projx(self, x: Tensor) -> Tensor:
        return x

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        del x
        return u

    egrad2rgrad = proju

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        del x
        return (u * (u if v is None else v)).sum(dim=-1, keepdim=keepdim)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x + u

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        del x, y
        return v

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        tangent = other - point
        return tangent, torch.zeros(tangent.shape[:-1], dtype=torch.bool, device=tangent.device)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        return (x - y).norm(dim=-1, keepdim=keepdim)

    def magnitude(self, point: Tensor) -> Tensor:
        return point.norm(dim=-1)

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        del mean, points
        return torch.ones(weights.shape[:-1], dtype=torch.bool, device=weights.device)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        del point, tolerance
        return None
