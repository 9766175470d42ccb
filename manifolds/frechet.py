"""One Fréchet mean for every manifold here, to machine precision, with its certificate.

The mean minimises `sum_i w_i dist(m, x_i)^2 / 2`, whose gradient is minus the weighted mean of the logs.
Where curvature is not negative the Hessian is at most the identity, and following that mean of logs for unit
time never increases the objective (Afsari, Tron, Vidal 2013); elsewhere a manifold's `safe_step` divides it
by a bound of the Hessian. A manifold may offer a better step (the sphere has Newton's); it is dropped for any
element whose residual it fails to reduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from merge_models.manifolds.arcs import weighted_sum

if TYPE_CHECKING:
    from merge_models.manifolds.base import AbstractManifold
    from merge_models.manifolds.unit_sphere import UnitSphere


class FrechetMeanError(ValueError):
    """Points and weights that have no Fréchet mean; the text holds shapes and values.

    >>> from merge_models.manifolds import Sphere
    >>> try:
    ...     frechet_mean(Sphere(), torch.eye(2), torch.tensor([1.0, -1.0]))
    ... except FrechetMeanError as error:
    ...     print("negative" in str(error))
    True
    """


@dataclass(frozen=True)
class FrechetMean:
    """A Fréchet mean, or the attempt at one, per element of the batch.

    - `point`: `[..., *event]`
    - `residual`: norm of the weighted mean of the logs at `point`, `[...]`
    - `iterations`: steps taken, `[...]`
    - `converged`: residual below tolerance, `[...]`
    - `unique`: whether a theorem guarantees that there is no other mean, `[...]`
    - `reason`: in words, over the batch

    >>> from merge_models.manifolds import Sphere
    >>> mean = frechet_mean(Sphere(), torch.eye(3, dtype=torch.float64))
    >>> bool(mean.converged), bool(mean.unique), mean.reason
    (True, True, 'converged in 0 iterations')
    """

    point: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    unique: Tensor
    reason: str


def frechet_mean(
    manifold: AbstractManifold | UnitSphere,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 200,
) -> FrechetMean:
    """Returns the weighted Fréchet mean of `points [..., N, *event]` under `weights [..., N]` (equal unless
    given).

    Converged means `residual <= tolerance * spread + 16 eps * magnitude`, where the spread is the root of the
    weighted mean squared distance, and the last term is what rounding leaves in a tangent. Weights are
    non-negative and are normalised; where all are zero nothing pulls, and the start is returned.

    Raises `FrechetMeanError` for shapes or weights that make no sense. What does not converge, or
    has points at each other's cut locus, is reported in the result, never raised.

    >>> from merge_models.manifolds import Sphere
    >>> frechet_mean(Sphere(), torch.eye(2, dtype=torch.float64)).point
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """
    points, weights = _prepare(manifold, points, weights)
    batch, event = weights.shape[:-1], points.shape[weights.dim() :]
    points = points.reshape(-1, weights.shape[-1], *event)
    weights = weights.reshape(-1, weights.shape[-1])
    search = _Search(manifold, points, weights, tolerance)
    for iteration in range(max_iterations + 1):
        if not search.active.numel():
            break
        search.step(iteration, last=iteration == max_iterations)
    unique = manifold.mean_is_unique(search.point, points, weights) & ~search.cut
    return FrechetMean(
        search.point.reshape(*batch, *event),
        search.residual.reshape(batch),
        search.iterations.reshape(batch),
        search.converged.reshape(batch),
        unique.reshape(batch),
        search.reason(unique),
    )


def _prepare(
    manifold: AbstractManifold | UnitSphere, points: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    if points.dim() < manifold.ndim + 1 or points.shape[-manifold.ndim - 1] < 1:
        raise FrechetMeanError(
            f"{manifold.name}: points are [..., N, *event] with {manifold.ndim} event dimensions"
            f" and N >= 1, not {tuple(points.shape)}"
        )
    points = points.to(torch.float64)
    split = points.dim() - manifold.ndim
    count = points.shape[split - 1]
    if weights is None:
        weights = points.new_ones(count)
    weights = weights.to(points)
    if weights.dim() < 1 or weights.shape[-1] != count:
        raise FrechetMeanError(f"{count} points take {count} weights, not {tuple(weights.shape)}")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise FrechetMeanError(f"weights are finite and not negative: {weights.tolist()}")
    batch = torch.broadcast_shapes(points.shape[: split - 1], weights.shape[:-1])
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / torch.where(total > 0, total, torch.ones_like(total))
    return points.expand(*batch, *points.shape[split - 1 :]), weights.expand(*batch, count)


class _Search:
    """The iteration over a flat batch; elements that are done leave `active` and cost no more."""

    def __init__(
        self, manifold: AbstractManifold | UnitSphere, points: Tensor, weights: Tensor, tolerance: float
    ) -> None:
        self.manifold, self.points, self.weights = manifold, points, weights
        self.tolerance = tolerance
        self.point = manifold.mean_start(points, weights)
        size = points.shape[0]
        self.active = torch.arange(size, device=points.device)
        self.residual = points.new_full((size,), torch.inf)
        self.iterations = torch.zeros(size, dtype=torch.int64, device=points.device)
        self.converged, self.cut, self.plain = (
            torch.zeros(size, dtype=torch.bool, device=points.device) for _ in range(3)
        )

    def step(self, iteration: int, *, last: bool) -> None:
        """Measure the active elements, retire those that are done, and move the others."""
        manifold = self.manifold
        # Most often all elements are active, and then no copy is made of them.
        whole = self.active.numel() == self.point.shape[0]
        active = slice(None) if whole else self.active
        here, weights = self.point[active], self.weights[active]
        logs, cut = manifold.minimal_log(here.unsqueeze(1), self.points[active])
        gradient = weighted_sum(weights, logs)
        residual = manifold.norm(here, gradient)
        squares = manifold.inner(here.unsqueeze(1), logs)
        spread = (weights * squares).sum(dim=-1).sqrt()
        rounding = 16 * torch.finfo(torch.float64).eps * manifold.magnitude(here)
        cut = (cut & (weights > 0)).any(dim=-1)
        converged = (residual <= self.tolerance * spread + rounding) & ~cut
        # A step that did not help was not the plain one, which always does.
        self.plain[active] |= residual > self.residual[active]
        self.residual[active] = residual
        self.iterations[active] = iteration
        self.converged[active], self.cut[active] = converged, cut
        going = ~(converged | cut)
        if last or not bool(going.any()):
            self.active = self.active[:0]
            return
        if not bool(going.all()):
            self.active = self.active[going]
            active = self.active
            here, logs, weights, gradient = here[going], logs[going], weights[going], gradient[going]
        better = manifold.mean_step(here, logs, weights, gradient)
        plain = self.plain[active].reshape(-1, *[1] * manifold.ndim)
        safe = manifold.safe_step(here, logs, weights, gradient)
        self.point[active] = manifold.expmap(here, torch.where(plain, safe, better))

    def reason(self, unique: Tensor) -> str:
        """What happened, in words, for the whole batch."""
        size = self.converged.numel()
        stuck = ~(self.converged | self.cut)
        said = []
        if bool(self.cut.any()):
            said.append(
                f"{int(self.cut.sum())} of {size} have a point on the cut locus of the start:"
                " no single direction leads to it"
            )
        if bool(stuck.any()):
            said.append(
                f"{int(stuck.sum())} of {size} did not converge in"
                f" {int(self.iterations.max())} iterations"
                f" (largest residual {float(self.residual[stuck].max()):.3g})"
            )
        if not said:
            said.append(f"converged in {int(self.iterations.max()) if size else 0} iterations")
        if not bool(unique.all()):
            said.append(f"{int((~unique).sum())} of {size} have no guarantee that the mean is unique")
        return "; ".join(said)
