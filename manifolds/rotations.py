"""The rotation group SO(d), alone or as blocks, which geoopt lacks.

geoopt's canonical Stiefel manifold calls a Cayley retraction its exponential map and has no logarithm. Here
both are the real ones, in the bi-invariant metric `<U, V> = tr(U^T V)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold, CutLocusError
from merge_models.manifolds.lifting import Lifted
from merge_models.manifolds.polar import rotation_factors
from merge_models.manifolds.procrustes import procrustes_from_moment


def skew_part(matrix: Tensor) -> Tensor:
    """Returns `(A - A^T) / 2` for matrices `[..., d, d]`."""
    return (matrix - matrix.mT) / 2


def rotation_log(rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the skew A `[..., d, d]` with `exp(A) = R`, angles up to pi, and where `[...]` there is no
    single one.

    The symmetric part S and the skew part K of a rotation commute, with eigenvalues cos t and +-i sin t, so
    `log R = K g(S)`, `g = t / sin t`: one symmetric eigenproblem. The sine is the norm of a row of K in the
    eigenbasis, so the angle keeps its digits at both ends. A plane turned by pi (K vanishes there), and a
    reflection, have no single logarithm: they are reported, and the matrix returned is zero.

    >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> rotation_log(quarter)[0]
    tensor([[ 0.0000, -1.5708],
            [ 1.5708,  0.0000]], dtype=torch.float64)
    """
    skew = skew_part(rotation)
    cosine, basis = torch.linalg.eigh((rotation + rotation.mT) / 2)
    turned = basis.mT @ skew @ basis
    sine = turned.norm(dim=-1)
    vanishes = sine <= 16 * math.sqrt(rotation.shape[-1]) * torch.finfo(sine.dtype).eps
    cut = (vanishes & (cosine < 0)).any(dim=-1)
    one = torch.ones_like(sine)
    stretch = torch.where(vanishes, one, torch.atan2(sine, cosine) / torch.where(vanishes, one, sine))
    turned = turned * (stretch.unsqueeze(-1) + stretch.unsqueeze(-2)) / 2
    tangent = skew_part(basis @ turned @ basis.mT)
    return torch.where(cut[..., None, None], torch.zeros_like(tangent), tangent), cut


def cayley(skew: Tensor) -> Tensor:
    """Returns `R = (I + Q) (I - Q)^-1` for skew Q `[..., d, d]` (Cayley 1846).

    >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> torch.allclose(cayley(quarter), quarter)
    True
    """
    skew = skew_part(skew)
    identity = torch.eye(skew.shape[-1]).to(skew)
    return torch.linalg.solve(identity - skew, identity + skew)


def inverse_cayley(rotation: Tensor) -> Tensor:
    """Returns `Q = (R - I) (R + I)^-1`, skew; `CutLocusError` where R turns a plane by pi (or is a
    reflection).

    >>> skew = torch.tensor([[0.0, -0.5], [0.5, 0.0]])
    >>> torch.allclose(inverse_cayley(cayley(skew)), skew)
    True
    """
    identity = torch.eye(rotation.shape[-1]).to(rotation)
    skew, info = torch.linalg.solve_ex(rotation + identity, rotation - identity)
    # Q has the eigenvalues +-i tan(t / 2); past 1 / sqrt(eps) its digits are those of the rounding of R.
    limit = torch.finfo(rotation.dtype).eps ** -0.5
    size = skew.abs().amax(dim=(-2, -1))
    bad = (info != 0) | ~(size < limit)
    if bool(bad.any()):
        raise CutLocusError(
            f"{int(bad.sum())} of {bad.numel()} rotations have the eigenvalue -1 (a turn by pi or a"
            " reflection): the Cayley transform does not reach them"
        )
    return skew_part(skew)


class SpecialOrthogonal(AbstractManifold):
    """Rotations `[..., d, d]`, or with `blocks` the block-diagonal ones as `[..., blocks, d, d]`.

    Tangents at R are `R A` with A skew. The mean is unique when all points lie, block by block, within pi /
    sqrt 2 of it (Afsari 2011, Theorem 2.1: injectivity radius sqrt 2 pi, sectional curvature at most 1/4).

    >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> SpecialOrthogonal(2).geodesic(torch.eye(2), quarter, 0.5)
    tensor([[ 0.7071, -0.7071],
            [ 0.7071,  0.7071]])
    """

    name = "SpecialOrthogonal"
    reversible = False
    event = "square"
    undefined = "has no full rank"

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> SpecialOrthogonal:
        return cls(shape[-1])

    def lift(self, values: Tensor) -> Lifted:
        """Takes square matrices apart into a rotation and a symmetric factor, `X = R S`."""
        return Lifted(*rotation_factors(values))

    def lower(self, point: Tensor, rest: Tensor) -> Tensor:
        return point @ rest

    def __init__(self, d: int, blocks: int | None = None) -> None:
        if d < 1 or (blocks is not None and blocks < 1):
            raise ValueError(f"SpecialOrthogonal needs d >= 1 and blocks >= 1: d = {d}, blocks = {blocks}")
        super().__init__()
        self.d = d
        self.blocks = blocks
        self.ndim = 2 if blocks is None else 3
        self._event = tuple(range(-self.ndim, 0))

    def projx(self, x: Tensor) -> Tensor:
        """Returns the polar factor of determinant +1, nearest to the identity where it is not unique."""
        return procrustes_from_moment(x)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ skew_part(x.mT @ u)

    egrad2rgrad = proju

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        product = (u * (u if v is None else v)).sum(dim=self._event, keepdim=keepdim)
        kept = (1,) * self.ndim if keepdim else ()
        shape = torch.broadcast_shapes((*x.shape[: x.dim() - self.ndim], *kept), product.shape)
        return product.expand(shape)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ torch.linalg.matrix_exp(skew_part(x.mT @ u))

    retr = expmap

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        skew, cut = rotation_log(point.mT @ other)
        if self.blocks is not None:
            cut = cut.any(dim=-1)
        tangent = point @ skew
        return torch.where(cut.reshape(*cut.shape, *[1] * self.ndim), 0.0, tangent), cut

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Returns `sqrt(2 sum t^2)` over the angles of the planes turned; defined at pi too."""
        relative = x.mT @ y
        cosine, basis = torch.linalg.eigh((relative + relative.mT) / 2)
        sine = (basis.mT @ skew_part(relative) @ basis).norm(dim=-1)
        squares = torch.atan2(sine, cosine).square()
        event = tuple(range(-self.ndim + 1, 0))
        length = squares.sum(dim=event, keepdim=keepdim).sqrt()
        return length.unsqueeze(-1) if keepdim else length

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Returns parallel transport on the geodesic: `y h^T A h`, h half of the way (Edelman, Arias, Smith
        1998)."""
        half = torch.linalg.matrix_exp(skew_part(x.mT @ self.logmap(x, y)) / 2)
        return y @ half.mT @ skew_part(x.mT @ v) @ half

    def magnitude(self, point: Tensor) -> Tensor:
        size = math.sqrt(self.d * (self.blocks or 1))
        return point.new_full(point.shape[: point.dim() - self.ndim], size)

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        # A product's mean is the product of its blocks' means, so each block has its own ball.
        distances = SpecialOrthogonal(self.d).dist(mean.unsqueeze(1), points)
        near = distances < math.pi / math.sqrt(2)
        near = near if self.blocks is None else near.all(dim=-1)
        return (near | (weights == 0)).all(dim=-1)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        event = (self.d, self.d) if self.blocks is None else (self.blocks, self.d, self.d)
        if point.shape[-self.ndim :] != event:
            return f"a rotation here is {event}, not {tuple(point.shape[-self.ndim :])}"
        gap = (point.mT @ point - torch.eye(self.d).to(point)).abs()
        if gap.numel() and float(gap.max()) > tolerance:
            return f"R^T R is off I by {float(gap.max()):.3g} (allowed {tolerance:.3g})"
        reflections = torch.linalg.det(point) < 0
        if bool(reflections.any()):
            return f"{int(reflections.sum())} of {reflections.numel()} have determinant -1: reflections"
        return None
