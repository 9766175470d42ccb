"""Symmetric positive definite matrices with the affine-invariant metric."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from merge_models.manifolds.arcs import weighted_sum
from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.lifting import Lifted

_CURVATURE = math.sqrt(0.5)
"""Sectional curvatures lie between -1/2 and 0 (Bridson & Haefliger 1999, II.10)."""


_HALVINGS = 8
"""How often Newton's step is halved at most before it is taken as it is."""

_CLOSE = 1e-2
"""How far the equation of Newton's step may stay unsolved, relative to its right side, far from the mean."""


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
        factor = _factor(x)
        first = _seen_from(factor, u)
        product = (first * (first if v is None else _seen_from(factor, v))).sum(dim=(-2, -1))
        return product[..., None, None] if keepdim else product

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        return self.inner(x, u, keepdim=keepdim).clamp_min(0).sqrt()

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        factor = _factor(x)
        values, vectors = torch.linalg.eigh(_symmetric(_seen_from(factor, u)))
        reached = factor @ (vectors * (values / 2).exp().unsqueeze(-2))
        return reached @ reached.mT

    retr = expmap

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        factor = _factor(point)
        axes, lengths = _axes(factor, _factor(other))
        back = factor @ axes
        tangent = _symmetric((back * lengths.unsqueeze(-2)) @ back.mT)
        return tangent, torch.zeros(tangent.shape[:-2], dtype=torch.bool, device=tangent.device)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        _, lengths = _axes(_factor(x), _factor(y))
        length = lengths.norm(dim=-1)
        return length[..., None, None] if keepdim else length

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns parallel transport `E v E^T` with `E = (Q P^-1)^1/2` (Sra & Hosseini 2015)."""
        factor = _factor(x)
        axes, lengths = _axes(factor, _factor(y))
        moved = factor @ (axes * (lengths / 2).exp().unsqueeze(-2)) @ axes.mT
        return moved @ _seen_from(factor, v) @ moved.mT

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_full(point.shape[:-2], math.sqrt(point.shape[-1]))

    def safe_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns the gradient over the largest eigenvalue that the Hessian may have."""
        length = _CURVATURE * self.norm(point.unsqueeze(-3), logs)
        tiny = length < 1e-4
        safe = torch.where(tiny, torch.ones_like(length), length)
        bound = torch.where(tiny, 1 + length.square() / 3, safe / torch.tanh(safe))
        return gradient / (weights * bound).sum(-1)[..., None, None]

    def mean_start(self, points: Tensor, weights: Tensor) -> Tensor:
        """Returns the log-Euclidean mean (Arsigny et al. 2007): the mean itself where points commute."""
        tiny = torch.finfo(points.dtype).tiny
        logs = _of_eigenvalues(points, lambda values: values.clamp_min(tiny).log())
        return _of_eigenvalues(weighted_sum(weights, logs), torch.exp)

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns Newton's step, halved until the gradient is smaller where it leads.

        Seen from the mean, a point's logarithm is `U diag(m) U^T`, and the Hessian of half its squared
        distance is `V -> U (z coth z * U^T V U) U^T`, `z_jk = (m_j - m_k) / 2`. Far points have large ones in
        some directions and small ones in others: following the gradient takes hundreds of steps there.
        """
        factor = _factor(point)
        lengths, axes = torch.linalg.eigh(_symmetric(_seen_from(factor.unsqueeze(-3), logs)))
        step = _newton(axes, lengths, weights, _symmetric(_seen_from(factor, gradient)))
        return _symmetric(factor @ _damped(step, axes, lengths, weights) @ factor.mT)

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


def _factor(matrix: Tensor) -> Tensor:
    """`F` with `F F^T = matrix`: Cholesky's, where there is one, as it keeps small eigenvalues' digits."""
    factor, failed = torch.linalg.cholesky_ex(_symmetric(matrix))
    if not bool(failed.any()):
        return factor
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    root = vectors * values.clamp_min(torch.finfo(values.dtype).tiny).sqrt().unsqueeze(-2)
    return torch.where((failed == 0)[..., None, None], factor, root)


def _seen_from(factor: Tensor, tangent: Tensor) -> Tensor:
    """A tangent at `F F^T` as one at the identity: `F^-1 u F^-T`."""
    half = torch.linalg.solve(factor, tangent)
    return torch.linalg.solve(factor, half.mT).mT


def _axes(factor: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """`U` and `m` with `F^-1 Q F^-T = U diag(exp m) U^T`, from the factors of both points.

    They are singular vectors of `F^-1 G`, so that no product is made whose small eigenvalues are rounding.
    """
    axes, values, _ = torch.linalg.svd(torch.linalg.solve(factor, other))
    return axes, 2 * values.clamp_min(torch.finfo(values.dtype).tiny).log()


def _newton(axes: Tensor, lengths: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Solves the Hessian's equation for a batch `[B, d, d]` by conjugate gradients."""
    half = (lengths.unsqueeze(-1) - lengths.unsqueeze(-2)) / 2
    tiny = half.abs() < 1e-4
    safe = torch.where(tiny, torch.ones_like(half), half)
    stretch = torch.where(tiny, 1 + half.square() / 3, safe / torch.tanh(safe))

    def hessian(tangent: Tensor) -> Tensor:
        turned = axes.mT @ tangent.unsqueeze(-3) @ axes
        return weighted_sum(weights, axes @ (stretch * turned) @ axes.mT)

    size = gradient.square().sum(dim=(-2, -1), keepdim=True)
    wanted = size * size.clamp(max=_CLOSE**2)
    solution, left, way, now = torch.zeros_like(gradient), gradient, gradient, size
    for _ in range(gradient.shape[-1] ** 2):
        going = now > wanted
        if not bool(going.any()):
            break
        bent = hessian(way)
        along = torch.where(going, now / (way * bent).sum(dim=(-2, -1), keepdim=True), torch.zeros_like(now))
        solution, left = solution + along * way, left - along * bent
        then = left.square().sum(dim=(-2, -1), keepdim=True)
        way = left + torch.where(going, then / now, torch.zeros_like(now)) * way
        now = then
    return solution


def _damped(step: Tensor, axes: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    """A step `[B, d, d]` at the identity, halved until the mean of the logarithms is shorter after it."""
    roots = axes * (lengths / 2).exp().unsqueeze(-2)

    def gradient_after(tangent: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(tangent)
        back = (vectors * (-values / 2).exp().unsqueeze(-2)) @ vectors.mT
        seen, apart, _ = torch.linalg.svd(back.unsqueeze(-3) @ roots)
        apart = 2 * apart.clamp_min(torch.finfo(apart.dtype).tiny).log()
        return weighted_sum(weights, (seen * apart.unsqueeze(-2)) @ seen.mT).norm(dim=(-2, -1))

    before = weighted_sum(weights, (axes * lengths.unsqueeze(-2)) @ axes.mT).norm(dim=(-2, -1))
    scale = torch.ones_like(before)
    for _ in range(_HALVINGS):
        longer = gradient_after(scale[..., None, None] * step) > before
        if not bool(longer.any()):
            break
        scale = torch.where(longer, scale / 2, scale)
    return scale[..., None, None] * step
