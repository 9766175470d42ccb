"""Centred Gaussians under the 2-Wasserstein distance: covariances with the Bures metric.

Between Gaussians with means, `W2^2 = |m1 - m2|^2 + Bures(C1, C2)^2` (Dowson & Landau 1982; Takatsu 2011):
means are averaged flat, and what is curved is here. Covariances may be singular.
"""

import torch
from torch import Tensor

from merge_models.manifolds.arcs import weighted_sum
from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.frechet import FrechetMean, frechet_mean
from merge_models.manifolds.lifting import Lifted


def covariance_root(covariance: Tensor) -> Tensor:
    """Returns the symmetric square root of positive semidefinite matrices `[..., d, d]`; rounding below 0 is
    cut.

    >>> covariance_root(torch.diag(torch.tensor([4.0, 9.0]))).round(decimals=4)
    tensor([[2., 0.],
            [0., 3.]])
    """
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT


def optimal_map(source: Tensor, target: Tensor) -> Tensor:
    """Returns the symmetric T `[..., d, d]` that pushes N(0, source) to N(0, target) at least cost.

    `T = A^-1 (A B A)^1/2 A^-1`, A the root of the source, B the target (Knott & Smith 1984). Where the
    source has no mass, T is the identity; what target mass lies out of the source's range is out of reach
    of any map.

    >>> narrow, round_ = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([4.0, 4.0]))
    >>> optimal_map(narrow, round_).round(decimals=4)
    tensor([[2., 0.],
            [0., 1.]])
    """
    displacement, _ = _displacement(source, target)
    return torch.eye(source.shape[-1]).to(displacement) + displacement


def barycenter(
    covariances: Tensor, weights: Tensor | None = None, *, max_iterations: int = 200
) -> FrechetMean:
    """Returns Wasserstein barycenter of `[..., N, d, d]` by the fixed point of Álvarez-Esteban et al. (2016).

    Commuting covariances, and so diagonal ones, are done at the start, which is `(sum_i w_i C_i^1/2)^2`.

    >>> narrow, wide = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([9.0, 4.0]))
    >>> barycenter(torch.stack([narrow, wide])).point.round(decimals=4)
    tensor([[4., 0.],
            [0., 4.]], dtype=torch.float64)
    """
    return frechet_mean(BuresWasserstein(), covariances, weights, max_iterations=max_iterations)


def _matched_root(source_root: Tensor, target_root: Tensor) -> Tensor:
    """The root F of the target, `F F^T = target`, that is nearest to the root of the source.

    `|A - B U|_F` is least at the polar factor of `B A` (Bhatia, Jain, Lim 2019), taken by SVD:
    squaring into `A C A` would lose half the digits of small variances.
    """
    left, _, right = torch.linalg.svd(target_root @ source_root)
    return target_root @ left @ right


def _displacement(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`T - I` for the optimal map, zero out of the source's range; the size `[...]` of what none reaches."""
    values, vectors = torch.linalg.eigh(source)
    values = values.clamp_min(0)
    root = values.sqrt()
    source_root = (vectors * root.unsqueeze(-2)) @ vectors.mT
    moved = _matched_root(source_root, covariance_root(target))
    inside = values > source.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    inverse = torch.where(inside, 1 / torch.where(inside, root, torch.ones_like(root)), 0.0)
    # The difference of roots is taken before the division, so near covariances keep their digits.
    inner = vectors.mT @ (moved - source_root) @ vectors
    unreached = torch.where(inside.unsqueeze(-1), 0.0, inner).norm(dim=(-2, -1))
    inner = torch.where(inside.unsqueeze(-1), inner, 0.0) * inverse.unsqueeze(-2)
    displacement = vectors @ inner @ vectors.mT
    return (displacement + displacement.mT) / 2, unreached


class BuresWasserstein(AbstractManifold):
    """Covariances `[..., d, d]`, positive semidefinite, with the Bures-Wasserstein distance.

    A tangent at C is the symmetric V by which the optimal map differs from the identity: `exp_C(V) = (I +
    V) C (I + V)`, `|V|^2 = tr(V C V)` (Takatsu 2011; Malagò, Montrucchio, Pistone 2018). `log` raises
    `CutLocusError` where target mass lies out of a singular point's range; `dist` and `geodesic` are
    defined there too. The curvature is not negative. The mean is unique if some point of positive weight is
    nonsingular where any is (Agueh & Carlier 2011). There is no closed
    form for `transport`.

    >>> one, other = torch.eye(2), 4 * torch.eye(2)
    >>> BuresWasserstein().dist(one, other)
    tensor(1.4142)
    """

    name = "BuresWasserstein"
    ndim = 2
    reversible = False
    event = "square"
    undefined = "is not symmetric positive semidefinite"

    def lift(self, values: Tensor) -> Lifted:
        """Takes matrices that are covariances to rounding; nothing is left out."""
        scale = values.abs().amax(dim=(-2, -1))
        slack = 16 * torch.finfo(torch.float32).eps * scale
        even = (values - values.mT).abs().amax(dim=(-2, -1)) <= slack
        finite = torch.isfinite(values).all(-1).all(-1)
        least = torch.linalg.eigvalsh(torch.nan_to_num(values + values.mT))[..., 0] / 2
        point = self.projx(torch.where(finite[..., None, None], values, torch.zeros_like(values)))
        return Lifted(point, torch.zeros_like(scale), even & finite & (least >= -slack))

    def projx(self, x: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh((x + x.mT) / 2)
        return (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return ((u + u.mT) / 2).expand(torch.broadcast_shapes(x.shape, u.shape))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        # dC = V C + C V, so the differential of f at C along V is <2 sym(grad f), V>_C.
        return 2 * self.proju(x, u)

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        return ((u @ x) * (u if v is None else v)).sum(dim=(-2, -1), keepdim=keepdim)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        push = torch.eye(x.shape[-1]).to(x) + u
        moved = push @ x @ push.mT
        return (moved + moved.mT) / 2

    retr = expmap

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        displacement, unreached = _displacement(point, other)
        size = torch.maximum(self.magnitude(point), self.magnitude(other))
        cut = unreached > point.shape[-1] * torch.finfo(point.dtype).eps ** 0.5 * size
        return torch.where(cut[..., None, None], 0.0, displacement), cut

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        source = covariance_root(x)
        moved = _matched_root(source, covariance_root(y))
        return (moved - source).norm(dim=(-2, -1), keepdim=keepdim)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError("BuresWasserstein.transport has no closed form")

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor | float) -> Tensor:
        """Returns covariance of `(1-t) X + t Y`, optimally coupled (McCann 1997), independent where that is
        free."""
        time = torch.as_tensor(t, dtype=start.dtype, device=start.device)[..., None, None]
        first, second = covariance_root(start), covariance_root(end)
        left, values, right = torch.linalg.svd(second @ first)
        paired = values > start.shape[-1] * torch.finfo(values.dtype).eps * values[..., :1]
        cross = second @ (left * paired.unsqueeze(-2)) @ right @ first
        return (1 - time) ** 2 * start + time**2 * end + time * (1 - time) * (cross + cross.mT)

    def magnitude(self, point: Tensor) -> Tensor:
        return point.diagonal(dim1=-2, dim2=-1).sum(dim=-1).clamp_min(0).sqrt()

    def mean_start(self, points: Tensor, weights: Tensor) -> Tensor:
        root = weighted_sum(weights, covariance_root(points))
        return root @ root

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        del mean
        whole = _rank(weighted_sum(weights, points)).unsqueeze(-1)
        return ((_rank(points) == whole) & (weights > 0)).any(dim=-1) | (weights == 0).all(dim=-1)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if point.shape[-1] != point.shape[-2]:
            return f"a covariance is square, not {tuple(point.shape[-2:])}"
        if not point.numel():
            return None
        scale = float(point.abs().max())
        gap = float((point - point.mT).abs().max())
        if gap > tolerance * scale:
            return f"it is not symmetric: off by {gap:.3g} (allowed {tolerance * scale:.3g})"
        least = float(torch.linalg.eigvalsh(point).min())
        if least < -tolerance * scale:
            return f"an eigenvalue is negative: {least:.3g} (allowed {-tolerance * scale:.3g})"
        return None


def _rank(covariance: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(covariance)
    floor = covariance.shape[-1] * torch.finfo(values.dtype).eps * values[..., -1:]
    return (values > floor).sum(dim=-1)


class DiagonalBuresWasserstein(AbstractManifold):
    """Diagonal covariances as variances `[..., d]`: their standard deviations are flat, and may be zero.

    A tangent is a displacement of the standard deviations; `dist^2 = sum (s_i - t_i)^2`. The mean is
    `(sum_i w_i s_i)^2`, one step away and unique.

    >>> DiagonalBuresWasserstein().dist(torch.tensor([1.0, 4.0]), torch.tensor([16.0, 4.0]))
    tensor(3.)
    """

    name = "DiagonalBuresWasserstein"
    ndim = 1
    reversible = False
    undefined = "has a negative variance"

    def lift(self, values: Tensor) -> Lifted:
        """Takes vectors of variances; nothing is left out."""
        defined = (torch.isfinite(values) & (values >= 0)).all(-1)
        return Lifted(values, torch.zeros_like(values[..., 0]), defined)

    def projx(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return 2 * x.sqrt() * u

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        return self.proju(x, u * (u if v is None else v)).sum(dim=-1, keepdim=keepdim)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return (x.sqrt() + u).square()

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        del x
        return self.proju(y, v)

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        tangent = other.sqrt() - point.sqrt()
        return tangent, torch.zeros(tangent.shape[:-1], dtype=torch.bool, device=tangent.device)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        return (y.sqrt() - x.sqrt()).norm(dim=-1, keepdim=keepdim)

    def magnitude(self, point: Tensor) -> Tensor:
        return point.sum(dim=-1).sqrt()

    def mean_start(self, points: Tensor, weights: Tensor) -> Tensor:
        return weighted_sum(weights, points.sqrt()).square()

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        del mean, points
        return torch.ones(weights.shape[:-1], dtype=torch.bool, device=weights.device)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        least = float(point.min()) if point.numel() else 0.0
        return f"a variance is negative: {least:.3g}" if least < 0 else None
