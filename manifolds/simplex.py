"""Probability vectors under the Fisher-Rao metric, for predictive distributions.

`p -> sqrt(p)` takes the simplex to the positive orthant of the unit sphere. The Fisher metric `sum dp_i^2 /
p_i` is four times the sphere's there, so distances are twice the angle: `dist(p, q) = 2 arccos sum sqrt(p_i
q_i)`, at most pi (Čencov 1982; Amari & Nagaoka 2000). With this factor `KL(p | q) = dist^2 /
2` to leading order.
"""

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.lifting import Lifted
from merge_models.manifolds.sphere import Sphere, angle_between

_SPHERE = Sphere()


class ProbabilitySimplex(AbstractManifold):
    """Probability vectors `[..., n]` with the Fisher-Rao distance; entries may be zero.

    A tangent at p is twice the sphere's tangent at sqrt(p), so its Euclidean norm is its length and the
    boundary is no singularity; `sqrt(p) * tangent` is the velocity of p. Any two points have one shortest
    path and any weighted set one mean, since the orthant lies in a ball of radius below pi about the
    uniform vector.

    >>> ProbabilitySimplex().geodesic(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.5000, 0.5000])
    """

    name = "ProbabilitySimplex"
    ndim = 1
    reversible = False
    undefined = "has a negative entry, or none above zero"

    def lift(self, values: Tensor) -> Lifted:
        """Takes vectors without negative entries apart into shares and their sum."""
        total = values.sum(-1)
        defined = (torch.isfinite(values) & (values >= 0)).all(-1) & (total > 0)
        return Lifted(self.projx(values), total, defined)

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        return rest.unsqueeze(-1) * point

    def projx(self, x: Tensor) -> Tensor:
        """Cuts negative entries and normalises; the zero vector becomes uniform."""
        x = x.clamp_min(0)
        total = x.sum(dim=-1, keepdim=True)
        return torch.where(total > 0, x, 1.0) / torch.where(total > 0, total, float(x.shape[-1]))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return _SPHERE.proju(x.sqrt(), u)

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return self.proju(x, x.sqrt() * u)

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        return _SPHERE.inner(x, u, u if v is None else v, keepdim=keepdim)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return _SPHERE.expmap(x.sqrt(), u / 2).square()

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return _SPHERE.transp(x.sqrt(), y.sqrt(), v)

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        tangent, cut = _SPHERE.minimal_log(point.sqrt(), other.sqrt())
        return 2 * tangent, cut

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        length = 2 * angle_between(x.sqrt(), y.sqrt())
        return length.unsqueeze(-1) if keepdim else length

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_full(point.shape[:-1], 2.0)

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        return 2 * _SPHERE.mean_step(point.sqrt(), logs / 2, weights, gradient / 2)

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        del mean, points
        return torch.ones(weights.shape[:-1], dtype=torch.bool, device=weights.device)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if not point.numel():
            return None
        if float(point.min()) < 0:
            return f"a probability is negative: {float(point.min()):.3g}"
        gap = float((point.sum(dim=-1) - 1).abs().max())
        return f"a sum is off 1 by {gap:.3g} (allowed {tolerance:.3g})" if gap > tolerance else None
