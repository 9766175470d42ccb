"""Points of a block mixed by coefficients that differ from row to row or column to column, and rows' Gram
data.

For one set of coefficients per tensor ``blocks.weighted_sum`` works on storage bytes; this is the torch
version for the rest. All of it goes by pieces that stay in the processor's cache, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models.manifolds.span import Gram
else:
    torch = LazyModule("torch")

_PIECE = 1 << 15


def pieces(block: Tensor, elements: int = _PIECE) -> Iterator[slice]:
    """Returns slices of the first dimension, of about so many elements each."""
    step = max(1, elements * len(block) // max(block.numel(), 1))
    for start in range(0, len(block), step):
        yield slice(start, start + step)


def row_gram(points: Sequence[Tensor], reference: Tensor) -> Gram:
    """Returns Gram data of each row of ``points``, N tensors ``[rows, columns]``, about the same row of
    ``reference``."""
    from merge_models.manifolds.span import Gram

    parts = [_piece_gram([point[rows] for point in points], reference[rows]) for rows in pieces(reference)]
    return Gram(
        torch.cat([part.reference for part in parts]),
        torch.cat([part.cross for part in parts]),
        torch.cat([part.differences for part in parts]),
    )


def _piece_gram(points: Sequence[Tensor], reference: Tensor) -> Gram:
    from merge_models.manifolds.span import Gram

    reference = reference.double()
    offsets = torch.stack([point.double() - reference for point in points], dim=-2)
    cross = (offsets @ reference.unsqueeze(-1)).squeeze(-1)
    return Gram(reference.square().sum(-1), cross, offsets @ offsets.mT)


def column_gram(points: Sequence[Tensor], reference: Tensor) -> Gram:
    """Returns Gram data of each column, a batch ``[1, columns]``; add those of blocks to get a tensor's."""
    from merge_models.manifolds.span import Gram

    count, columns = len(points), reference.shape[1]
    own = torch.zeros(1, columns, dtype=torch.float64)
    cross = torch.zeros(1, columns, count, dtype=torch.float64)
    differences = torch.zeros(1, columns, count, count, dtype=torch.float64)
    for rows in pieces(reference):
        origin = reference[rows].double()
        offsets = [point[rows].double() - origin for point in points]
        own[0] += origin.square().sum(0)
        for i in range(count):
            cross[0, :, i] += (origin * offsets[i]).sum(0)
            for j in range(i, count):
                differences[0, :, i, j] += (offsets[i] * offsets[j]).sum(0)
    upper = differences.triu(1)
    return Gram(own, cross, differences + upper.mT)


def mix(points: Sequence[Tensor], weights: Tensor, base: Tensor | None, base_weight: Tensor | None) -> Tensor:
    """Returns ``sum_i weights[i] points[i] + base_weight * base``, as differences from the first point.

    Points that are equal to rounding keep their digits that way, and equal ones come back equal.

    Args:
        points: N tensors ``[rows, columns]`` as they are stored. weights: ``[N]`` for the whole block,
        ``[rows, N]``, or ``[1, columns, N]``. base: one more point, of weight ``base_weight``: of the shape
        of ``weights`` without its last dimension.

    Returns:
        ``[rows, columns]`` in float64.
    """
    used = list(zip(points, weights.unbind(-1), strict=True))
    if base is not None and base_weight is not None and bool(base_weight.any()):
        used.append((base, base_weight))
    total = torch.stack([weight for _, weight in used]).sum(0)
    used[0] = (points[0], torch.where((total - 1).abs() <= 1e-15 * len(used), torch.ones_like(total), total))
    mixed = torch.empty(points[0].shape, dtype=torch.float64)
    for rows in pieces(mixed):
        (first, whole), *others = [(point[rows], _aligned(weight, rows)) for point, weight in used]
        first = first.double()
        merged = first * whole
        for point, weight in others:
            merged.addcmul_(point.double() - first, weight)
        mixed[rows] = merged
    return mixed


def _aligned(weight: Tensor, rows: slice) -> Tensor:
    return weight[rows].unsqueeze(-1) if weight.ndim == 1 else weight
