"""Signs of sums that may cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

ROUNDING = 1e-12
"""What rounding may leave of a sum, against the sum of its sizes."""


def sign_of_sum(offsets: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Returns the sign of ``sum_i w_i x_i``; what rounding leaves of a sum that cancels is none."""
    total, mass = (torch.zeros_like(offsets[0][1], dtype=torch.float64) for _ in range(2))
    for share, offset in offsets:
        total.add_(offset, alpha=share)
        mass.add_(offset.abs(), alpha=share)
    return total.masked_fill_(total.abs() <= ROUNDING * mass, 0.0).sign_()
