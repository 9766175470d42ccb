"""What every carrier here answers, over and above geoopt's `Manifold`.

geoopt names its operations by symbols (`projx`, `expmap`, `transp`); the subclasses implement those, so its
optimisers work on our manifolds, and this class gives them the field's words. It adds what merging needs:
logarithms that say where they are not unique, membership explained in words, and the few facts about a
space that its Fréchet mean depends on.
"""

from __future__ import annotations

import abc
import math
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from merge_models.manifolds.arcs import weighted_sum
from merge_models.manifolds.lifting import Lifted

with warnings.catch_warnings():
    # geoopt 0.5.1 scripts a helper at import, which newer torch reports as deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from geoopt.manifolds.base import Manifold
    from geoopt.manifolds.sphere import Sphere as GeooptSphere

__all__ = ["AbstractManifold", "CutLocusError", "GeooptSphere", "NotOnManifoldError"]


class NotOnManifoldError(ValueError):
    """A point that should lie on the manifold does not; the text says how far off it is.

    >>> from merge_models.manifolds import Sphere
    >>> try:
    ...     Sphere().require(torch.tensor([3.0, 4.0]))
    ... except NotOnManifoldError as error:
    ...     print(error)
    Sphere: a norm is off 1 by 4 ...
    """


class CutLocusError(ValueError):
    """A logarithm was asked for where none, or more than one, shortest path exists.

    >>> from merge_models.manifolds import Sphere
    >>> try:
    ...     Sphere().log(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]))
    ... except CutLocusError as error:
    ...     print(error)
    Sphere: no single shortest path for 1 of 1 pairs ...
    """


class AbstractManifold(Manifold):
    """A complete space whose points are tensors `[..., *event]`; leading dimensions are a batch.

    - `ndim`: the number of event dimensions
    - `event`: what the raw numbers of a point are: a `vector`, a `square` matrix, or a `tall` one
    - `undefined`: what is wrong with raw numbers that no point is made of

    >>> from merge_models.manifolds import find_manifold
    >>> sphere = find_manifold("sphere")()
    >>> sphere.dist(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor(1.5708)
    """

    ndim: int
    event: ClassVar[str] = "vector"
    undefined: ClassVar[str] = "holds NaN or Inf"

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> AbstractManifold:
        """Returns the manifold for raw numbers of an event shape."""
        del shape
        return cls()

    @classmethod
    def accepts(cls, shape: tuple[int, ...]) -> str | None:
        """Returns None if raw numbers of an event shape may be points, or else the reason in words."""
        if cls.event == "vector":
            return None if shape and shape[-1] >= 2 else "a point is a vector of two numbers or more"
        if len(shape) != 2:
            return f"a point is a matrix, not of {len(shape)} dimensions"
        rows, columns = shape
        if cls.event == "square" and rows != columns:
            return f"a point is a square matrix, not {rows} x {columns}"
        if cls.event == "tall" and rows <= columns:
            return f"a point is a matrix with more rows than columns, not {rows} x {columns}"
        return None

    def lift(self, values: Tensor) -> Lifted:
        """Returns raw numbers `[..., *event]` as points, with what the points leave out."""
        finite = torch.isfinite(values).reshape(*values.shape[: values.dim() - self.ndim], -1).all(-1)
        return Lifted(values, torch.zeros_like(finite, dtype=values.dtype), finite)

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        """Returns the raw numbers of a point; `lower(*lift(x))` is x."""
        del rest
        return point

    @abc.abstractmethod
    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the shortest tangent that leads from `point` to `other`, and where there is no single one.

        Returns the tangent `[..., *event]` and a mask `[...]`; under the mask the tangent is zero.
        """

    @abc.abstractmethod
    def magnitude(self, point: Tensor) -> Tensor:
        """Returns the size `[...]` of the numbers that tangents at `point` come from: they round at eps times
        it."""

    @abc.abstractmethod
    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """Returns whether `[B]` a theorem guarantees that `points [B, N, *event]` have no other mean than
        `mean`."""

    def mean_start(self, points: Tensor, weights: Tensor) -> Tensor:
        """Returns where the mean's iteration starts `[B, *event]`: the flat mean, projected."""
        return self.projx(weighted_sum(weights, points))

    def mean_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns the tangent to follow from `point` toward the mean, given the mean of `logs`."""
        del point, logs, weights
        return gradient

    def safe_step(self, point: Tensor, logs: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        """Returns the tangent that never leads away from the mean: the mean of `logs` under curvature of 0 or
        more.

        The Hessian of half the mean squared distance is then at most the identity.
        """
        del point, logs, weights
        return gradient

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        tangent, cut = self.minimal_log(x, y)
        if bool(cut.any()):
            raise CutLocusError(
                f"{self.name}: no single shortest path for {int(cut.sum())} of {cut.numel()} pairs"
                " of points (antipodes, a rotation by pi, or mass that no map can reach)"
            )
        return tangent

    def project(self, point: Tensor) -> Tensor:
        """Returns the nearest point of the manifold."""
        return self.projx(point)

    def exp(self, point: Tensor, tangent: Tensor) -> Tensor:
        """Follows the geodesic that leaves `point` along `tangent` for unit time."""
        return self.expmap(point, tangent)

    def log(self, point: Tensor, other: Tensor) -> Tensor:
        """Returns the tangent at `point` with `exp(point, tangent) = other`; `CutLocusError` if it is not
        unique."""
        return self.logmap(point, other)

    def transport(self, point: Tensor, other: Tensor, tangent: Tensor) -> Tensor:
        """Carries a tangent at `point` to `other`."""
        return self.transp(point, other, tangent)

    def geodesic(self, start: Tensor, end: Tensor, t: Tensor | float) -> Tensor:
        """Returns the point at `t` on the shortest path: `start` at 0, `end` at 1. `t` broadcasts over the
        batch."""
        time = torch.as_tensor(t, dtype=start.dtype, device=start.device)
        time = time.reshape(*time.shape, *[1] * self.ndim)
        return self.expmap(start, time * self.logmap(start, end))

    def check(self, point: Tensor, *, tolerance: float | None = None) -> str | None:
        """Returns None if every point of the batch lies on the manifold, or else the reason in words."""
        if not point.is_floating_point():
            return f"a point is a floating tensor, not {point.dtype}"
        if point.dim() < self.ndim:
            return f"a point has {self.ndim} dimensions or more, not shape {tuple(point.shape)}"
        if not bool(torch.isfinite(point).all()):
            return f"{int((~torch.isfinite(point)).sum())} of {point.numel()} entries are NaN or Inf"
        tolerance = math.sqrt(torch.finfo(point.dtype).eps) if tolerance is None else tolerance
        return self._violation(point, tolerance)

    def require(self, point: Tensor) -> None:
        """Raises `NotOnManifoldError` with the reason that `check` gives."""
        reason = self.check(point)
        if reason is not None:
            raise NotOnManifoldError(f"{self.name}: {reason}")

    @abc.abstractmethod
    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        """Why finite floating points `[..., *event]` are off the manifold, or None."""

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        reason = self._violation(x, max(atol, rtol))
        return reason is None, reason

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        gap = float((u - self.proju(x, u)).abs().max()) if u.numel() else 0.0
        allowed = atol + rtol * (float(u.abs().max()) if u.numel() else 0.0)
        return gap <= allowed, None if gap <= allowed else f"the vector leaves the tangent by {gap:.3g}"
