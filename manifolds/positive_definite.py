"""Symmetric positive definite matrices with the affine-invariant metric."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.lifting import Lifted

_CURVATURE = math.sqrt(0.5)
"""Sectional curvatures lie between -1/2 and 0 (Bridson & Haefliger 1999, II.10)."""


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _of_eigenvalues(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    return (vectors * function(values).unsqueeze(-2)) @ vectors.mT


class PositiveDefinite(AbstractManifold):
    """Matrices `[..., d, d]`, distance `|log(P^-1/2 Q P^-1/2)|_F` (Pennec, Fillard & Ayache 2006).

    The mean of numbers above zero, `d = 1`, is their geometric mean. Curvature is not positive, so any points
    have one mean (Cartan-Hadamard).

    >>> import torch
    >>> PositiveDefinite().geodesic(torch.eye(2), 4 * torch.eye(2), 0.5).round(decimals=4)
    tensor([[2., 0.],
            [0., 2.]])
    """

    name = "PositiveDefinite"
    ndim = 2
    reversible = False
    event = "square"
    undefined = "is not symmetric positive definite"

    def projx(self, x: Tensor) -> Tensor:
        """Symmetrises, and lifts eigenvalues to a rounding of the largest."""
        values, vectors = torch.linalg.eigh(_symmetric(x))
        least = values[..., -1:].abs().clamp_min(1e-30) * 16 * torch.finfo(values.dtype).eps
        return (vectors * torch.maximum(values, least).unsqueeze(-2)) @ vectors.mT

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        del x
        return _symmetric(u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ _symmetric(u) @ x

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        first = torch.linalg.solve(x, u)
        second = first if v is None else torch.linalg.solve(x, v)
        product = (first * second.mT).sum(dim=(-2, -1))
        return product[..., None, None] if keepdim else product

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        return self.inner(x, u, keepdim=keepdim).clamp_min(0).sqrt()

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        root, inverse = _roots(x)
        return _symmetric(root @ _of_eigenvalues(inverse @ _symmetric(u) @ inverse, torch.exp) @ root)

    retr = expmap

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        root, inverse = _roots(point)
        # Of the difference, so that near matrices keep their digits.
        inside = _of_eigenvalues(inverse @ _symmetric(other - point) @ inverse, torch.log1p)
        tangent = _symmetric(root @ inside @ root)
        return tangent, torch.zeros(tangent.shape[:-2], dtype=torch.bool, device=tangent.device)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        _, inverse = _roots(x)
        values = torch.linalg.eigvalsh(_symmetric(inverse @ _symmetric(y - x) @ inverse))
        length = torch.log1p(values).norm(dim=-1)
        return length[..., None, None] if keepdim else length

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns parallel transport `E v E^T` with `E = (Q P^-1)^1/2` (Sra & Hosseini 2015)."""
        root, inverse = _roots(x)
        moved = root @ _of_eigenvalues(inverse @ y @ inverse, torch.sqrt) @ inverse
        return moved @ v @ moved.mT

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_full(point.shape[:-2], math.sqrt(point.shape[-1]))

    def safe_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns the gradient over the largest eigenvalue that the Hessian may have."""
        length = _CURVATURE * self.norm(point.unsqueeze(-3), logs)
        tiny = length < 1e-4
        safe = torch.where(tiny, torch.ones_like(length), length)
        bound = torch.where(tiny, 1 + length.square() / 3, safe / torch.tanh(safe))
        return gradient / (weights * bound).sum(-1)[..., None, None]

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        return self.safe_step(point, logs, weights, gradient)

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        del mean, points
        return torch.ones(weights.shape[:-1], dtype=torch.bool, device=weights.device)

    def lift(self, values: Tensor) -> Lifted:
        """Takes matrices that are symmetric positive definite to rounding; nothing is left out."""
        scale = values.abs().amax(dim=(-2, -1))
        eps = torch.finfo(torch.float32).eps
        even = (values - values.mT).abs().amax(dim=(-2, -1)) <= 16 * eps * scale
        least = torch.linalg.eigvalsh(_symmetric(torch.nan_to_num(values)))[..., 0]
        defined = even & (least > 0) & torch.isfinite(values).all(-1).all(-1)
        return Lifted(_symmetric(values), torch.zeros_like(scale), defined)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if point.shape[-1] != point.shape[-2]:
            return f"a matrix here is square, not {tuple(point.shape[-2:])}"
        size = float(point.abs().max()) if point.numel() else 1.0
        gap = float((point - point.mT).abs().max()) if point.numel() else 0.0
        if gap > tolerance * max(size, 1.0):
            return f"a matrix is not symmetric: off by {gap:.3g}"
        least = torch.linalg.eigvalsh(_symmetric(point))[..., 0]
        if least.numel() and float(least.min()) <= 0:
            return f"an eigenvalue is not positive: {float(least.min()):.3g}"
        return None


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root and its inverse."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    root = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt().unsqueeze(-2)
    return (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT
