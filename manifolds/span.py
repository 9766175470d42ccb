"""The Gram principle: a mean that respects isometries lies in the span of its points.

So all that can matter about N tensors of a billion elements is their N x N Gram matrix. Here it is factored
into N points of R^(N+1) with the same mutual geometry; whatever is found there comes back as coefficients,
`out = sum_i c_i x_i`. Points are held as a reference r and differences `d_i = x_i - r`, because sibling
checkpoints differ by 1e-3 and less: the Gram matrix of the points themselves would lose half the digits of
it.

This module needs torch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class GramError(ValueError):
    """Shapes or values that are no Gram data; the text holds them.

    >>> try:
    ...     Gram(torch.tensor(1.0), torch.zeros(2), torch.zeros(3, 3))
    ... except GramError as error:
    ...     print("(3, 3)" in str(error))
    True
    """


@dataclass(frozen=True)
class Gram:
    """Inner products of a reference r and of differences `d_i = x_i - r`, in float64, batched.

    - `reference`: |r|^2, `[...]`
    - `cross`: <r, d_i>, `[..., N]`
    - `differences`: <d_i, d_j>, `[..., N, N]`

    Each field is a sum over elements, so Gram data of blocks add up to those of the tensor (`+`).

    >>> gram = Gram.from_points(torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0]))
    >>> gram.differences
    tensor([[4., 0.],
            [0., 0.]], dtype=torch.float64)
    """

    reference: Tensor
    cross: Tensor
    differences: Tensor

    def __post_init__(self) -> None:
        count = self.cross.shape[-1] if self.cross.dim() else 0
        batch = self.reference.shape
        if self.cross.shape != (*batch, count) or self.differences.shape != (*batch, count, count):
            raise GramError(
                "Gram data have shapes [...], [..., N], [..., N, N]; got"
                f" {tuple(batch)}, {tuple(self.cross.shape)}, {tuple(self.differences.shape)}"
            )
        dtypes = {self.reference.dtype, self.cross.dtype, self.differences.dtype}
        if dtypes != {torch.float64}:
            raise GramError(f"Gram data are float64, not {sorted(map(str, dtypes))}")

    @staticmethod
    def from_points(points: Tensor, reference: Tensor | None = None) -> Gram:
        """Returns Gram data of `points [..., N, n]` about `reference [..., n]` (the first point unless
        given)."""
        points = points.to(torch.float64)
        origin = points[..., 0, :] if reference is None else reference.to(torch.float64)
        offsets = points - origin.unsqueeze(-2)
        return Gram(
            (origin * origin).sum(dim=-1).expand(offsets.shape[:-2]),
            (offsets @ origin.unsqueeze(-1)).squeeze(-1),
            offsets @ offsets.mT,
        )

    def __add__(self, other: Gram) -> Gram:
        return Gram(
            self.reference + other.reference,
            self.cross + other.cross,
            self.differences + other.differences,
        )

    def full(self) -> Tensor:
        """Returns <x_i, x_j>, `[..., N, N]`. Small differences between the points are not in it any more."""
        pairs = self.cross.unsqueeze(-1) + self.cross.unsqueeze(-2)
        return self.reference[..., None, None] + pairs + self.differences

    def norms(self) -> Tensor:
        """Returns |x_i|, `[..., N]`."""
        own = self.differences.diagonal(dim1=-2, dim2=-1)
        return (self.reference.unsqueeze(-1) + 2 * self.cross + own).clamp_min(0).sqrt()

    def angles(self) -> Tensor:
        """Returns angles between the points, `[..., N, N]` in [0, pi]; 0 where a point is zero.

        They are `atan2(|x_i ^ x_j|, <x_i, x_j>)`, the area taken from the difference of the two points, so
        nearly parallel points keep their digits. Within 1e-8 of pi a Gram matrix cannot resolve an angle.
        """
        points = embed(self).points
        units, norms = directions(points)
        gap = (units.unsqueeze(-2) - units.unsqueeze(-3)).norm(dim=-1)
        sum_ = (units.unsqueeze(-2) + units.unsqueeze(-3)).norm(dim=-1)
        defined = (norms.unsqueeze(-1) > 0) & (norms.unsqueeze(-2) > 0)
        return torch.where(defined, 2 * torch.atan2(gap, sum_), torch.zeros_like(gap))

    def about_reference(self) -> Gram:
        """Returns the differences as the points: the sphere's origin moves from zero to the reference."""
        zero = torch.zeros_like(self.cross)
        return Gram(torch.zeros_like(self.reference), zero, self.differences)


@dataclass(frozen=True)
class Embedding:
    """Vectors with the geometry of a Gram: `points [..., N, N+1]` and the `reference [..., N+1]`.

    >>> embedding = embed(Gram.from_points(torch.eye(2), torch.zeros(2)))
    >>> embedding.points.shape, embedding.reference.shape
    (torch.Size([2, 3]), torch.Size([3]))
    """

    points: Tensor
    reference: Tensor


def embed(gram: Gram) -> Embedding:
    """Puts the points of a Gram into R^(N+1), the reference along the first axis.

    A difference has its part along r on that axis; the parts across r have the Gram matrix `D_ij - c_i c_j
    / |r|^2`, which is scaled to unit diagonal before it is factored by `eigh`: so a difference of 1e-6
    beside one of 1 keeps its digits. Equal points come out equal to rounding, zero ones zero.

    >>> points = torch.tensor([[3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)
    >>> embedded = embed(Gram.from_points(points, points[0])).points
    >>> torch.allclose(embedded @ embedded.mT, points @ points.mT)
    True
    """
    length = gram.reference.clamp_min(0).sqrt().unsqueeze(-1)
    has_reference = length > 0
    along = torch.where(
        has_reference,
        gram.cross / torch.where(has_reference, length, torch.ones_like(length)),
        torch.zeros_like(gram.cross),
    )
    own = gram.differences.diagonal(dim1=-2, dim2=-1)
    across = gram.differences - along.unsqueeze(-1) * along.unsqueeze(-2)
    # What is left of a difference along r after this subtraction is rounding, and is cut to zero.
    height = across.diagonal(dim1=-2, dim2=-1)
    eps = torch.finfo(torch.float64).eps
    height = torch.where(height > 8 * eps * own, height, torch.zeros_like(height)).sqrt()
    scale = torch.where(height > 0, height, torch.ones_like(height))
    correlation = across / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    values, vectors = torch.linalg.eigh(correlation)
    values = torch.where(values > 8 * eps, values, torch.zeros_like(values))
    sides = height.unsqueeze(-1) * vectors * values.sqrt().unsqueeze(-2)
    axis = length + along
    # Likewise what rounding leaves of a point at zero: two sums of the same products may differ in order.
    axis = torch.where(axis.abs() > 64 * eps * length, axis, torch.zeros_like(axis))
    points = torch.cat([axis.unsqueeze(-1), sides], dim=-1)
    reference = torch.cat([length, torch.zeros_like(along)], dim=-1)
    return Embedding(points, reference)


def directions(points: Tensor) -> tuple[Tensor, Tensor]:
    """Returns unit vectors `[..., N, K]` and norms `[..., N]` of points `[..., N, K]`; a zero point stays
    zero.

    >>> directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    (tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]]), tensor([5., 0.]))
    """
    norms = points.norm(dim=-1)
    return points / torch.where(norms > 0, norms, torch.ones_like(norms)).unsqueeze(-1), norms


def coefficients(points: Tensor, target: Tensor) -> Tensor:
    """Returns the coefficients c `[..., N]` of least norm with `sum_i c_i points_i` nearest to `target [...,
    K]`.

    For points that are nearly equal this system is nearly singular; a mean on the sphere has an explicit
    answer instead (`sphere.mean_coefficients`). To let the reference take part, append it to the points.

    >>> coefficients(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([3.0, 4.0])).round(decimals=4)
    tensor([3., 2.])
    """
    inverse = torch.linalg.pinv(points.mT, rtol=1e-13)
    return (inverse @ target.unsqueeze(-1)).squeeze(-1)
