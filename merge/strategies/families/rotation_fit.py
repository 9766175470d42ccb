"""From the moments of deltas to the rotations that explain them, and how well they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class DeltaMoments:
    """What rotations of a base W are fitted to; all float64, of N deltas D_i.

    Attributes:
        gram: ``W^T W``, ``[blocks, b, b]``.
        shifts: ``W^T D_i`` of the part of D_i to explain, ``[N, blocks, b, b]``.
        energies: ``|D_i|^2``, ``[N]``.
    """

    gram: Tensor
    shifts: Tensor
    energies: Tensor

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.gram).all() & torch.isfinite(self.shifts).all())

    def rotations(self, dtype: torch.dtype) -> list[Tensor]:
        """Returns for each delta the rotation, float64 ``[blocks, b, b]``, that takes W nearest to W + D_i.

        Solved in ``dtype``, with one factorisation of the Gram matrix; equal moments once.
        """
        from merge_models.manifolds.procrustes import SharedProcrustes

        solvers = [SharedProcrustes.from_gram(part.to(dtype)) for part in self.gram]
        size, eps = float(self.gram.diagonal(dim1=-2, dim2=-1).sum()), torch.finfo(dtype).eps
        found: list[Tensor] = []
        for number, (shift, energy) in enumerate(zip(self.shifts, self.energies, strict=True)):
            twin = next((i for i in range(number) if torch.equal(self.shifts[i], shift)), None)
            if twin is not None:
                found.append(found[twin])
                continue
            # What is left is to be small against the delta, not only against the base.
            delta = math.sqrt(float(energy) / size) if size else 1.0
            tolerance = max((1e-4 if dtype == torch.float32 else 1e-12) * delta, 8 * eps)
            solved = [s.solve(part, tolerance=tolerance) for s, part in zip(solvers, shift, strict=True)]
            found.append(torch.stack([near.rotation for near in solved]).double())
        return found

    def explained(self, rotations: Sequence[Tensor]) -> float | None:
        """Returns the mean share of ``|D_i|^2`` that the rotations explain; None where no delta is.

        ``|D|^2 - |D - W X|^2 = 2 <X, W^T D> - <X, W^T W X>``, for a rotation I + X.
        """
        shares = []
        for rotation, shift, energy in zip(rotations, self.shifts, self.energies, strict=True):
            if energy > 0:
                change = less_identity(rotation)
                gain = (change * (2 * shift - self.gram @ change)).sum()
                shares.append(float(gain / energy))
        return math.fsum(shares) / len(shares) if shares else None


def less_identity(rotation: Tensor) -> Tensor:
    """Returns ``R - I`` of rotations ``[..., b, b]``."""
    return rotation - torch.eye(rotation.shape[-1], dtype=rotation.dtype)


def angle_of(rotation: Tensor) -> float:
    """Returns how far a rotation ``[blocks, b, b]`` turns, in radians: root mean square over directions."""
    chord = float(less_identity(rotation).norm()) / math.sqrt(rotation.shape[0] * rotation.shape[1])
    return 2 * math.asin(min(1.0, chord / 2))


def defect_of(rotation: Tensor) -> float:
    """Returns the largest entry of ``R^T R - I``."""
    turn = less_identity(rotation)
    return float((turn + turn.mT + turn.mT @ turn).abs().max())
