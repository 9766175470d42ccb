"""The unit sphere as a geoopt manifold."""

import torch
from torch import Tensor

from merge_models.manifolds.arcs import angle_between
from merge_models.manifolds.base import AbstractManifold, GeooptSphere
from merge_models.manifolds.lifting import Lifted
from merge_models.manifolds.unit_sphere import UnitSphere


class Sphere(UnitSphere, AbstractManifold, GeooptSphere):
    """Unit vectors `[..., n]` with the angle as distance.

    `log` of an antipode raises `CutLocusError`; `minimal_log` reports it. The mean is unique when
    an open hemisphere holds all points.

    >>> import torch
    >>> Sphere().log(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor([0.0000, 1.5708])
    """

    reversible = False
    undefined = "is zero, which has no direction"

    def lift(self, values: Tensor) -> Lifted:
        """Takes vectors `[..., n]` apart into their direction and their norm."""
        norm = values.norm(dim=-1)
        return Lifted(self.projx(values), norm, torch.isfinite(norm) & (norm > 0))

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        return rest.unsqueeze(-1) * point

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return self.proju(x, u)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        return self.expmap(x, u)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns parallel transport along the geodesic (Absil, Mahony, Sepulchre 2008, section 8.1)."""
        return v - (y * v).sum(-1, keepdim=True) / (1 + (x * y).sum(-1, keepdim=True)) * (x + y)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        angle = angle_between(x, y)
        return angle.unsqueeze(-1) if keepdim else angle

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        if point.shape[-1] < 2:
            return f"a sphere needs vectors of length 2 or more, not {point.shape[-1]}"
        gap = (point.norm(dim=-1) - 1).abs()
        if gap.numel() and float(gap.max()) > tolerance:
            return f"a norm is off 1 by {float(gap.max()):.3g} (allowed {tolerance:.3g})"
        return None
