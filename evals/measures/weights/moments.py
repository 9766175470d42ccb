"""One pass over a tensor in all models: its Gram matrix about the base, and where signs disagree.

The Gram matrix of differences from a reference (the base, else the first parent) holds all norms, angles,
cosines and shares; taken of the differences, it keeps the geometry of models that are 1e-8 apart. All sums
are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.measures.weights.blocks import pieces
from merge_models.evals.measures.weights.family import Stored, TensorFamily
from merge_models.manifolds.span import Gram


@dataclass(frozen=True)
class Moments:
    """Sums over one tensor's elements; those of several tensors add up.

    Attributes:
        gram: of parents and merge about the reference; ``[N]`` and ``[N, N]`` in that order.
        conflicts: coordinates whose nonzero deltas (parent - base) differ in sign.
        contested: coordinates with at least two nonzero deltas.
    """

    gram: Gram
    conflicts: int
    contested: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.gram + other.gram, self.conflicts + other.conflicts, self.contested + other.contested
        )

    @property
    def sign_conflict(self) -> float | None:
        """Share of the contested coordinates that conflict; None where none is contested."""
        return self.conflicts / self.contested if self.contested else None

    def finite(self, positions: Sequence[int]) -> bool:
        """Returns whether models (by their places in the Gram) and the reference hold no NaN or Inf."""
        own = self.gram.differences.diagonal()[list(positions)]
        return bool(torch.isfinite(own).all() & torch.isfinite(self.gram.reference))

    def norms(self) -> list[float | None]:
        """Returns the Frobenius norm of each model's tensor; None where it is not finite."""
        return [_number(norm) for norm in self.gram.norms()]

    def delta_norms(self) -> list[float | None]:
        """Returns the norm of each model's difference from the reference."""
        return [_number(own.sqrt()) for own in self.gram.differences.diagonal()]


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def is_finite(stored: Stored) -> bool:
    """Returns whether one tensor holds no NaN or Inf."""
    return all(bool(torch.isfinite(piece).all()) for piece in pieces([stored], stored.info.count))


def measure(family: TensorFamily) -> Moments:
    """Reads a tensor of all models once. A NaN or Inf stays in its model's row and column."""
    reference = family.base or family.models[0]
    models, parents = family.models, len(family.parents)
    sums = torch.zeros(1 + len(models), 1 + len(models), dtype=torch.float64)
    conflicts = contested = 0
    for piece in pieces([reference, *models], family.count):
        piece[1:] -= piece[0]
        sums += piece @ piece.T
        if family.base and parents > 1:
            more = sign_counts(piece[1 : 1 + parents].numpy())
            conflicts, contested = conflicts + more[0], contested + more[1]
    gram = Gram(sums[0, 0].clone(), sums[0, 1:].clone(), sums[1:, 1:].clone())
    return Moments(gram, conflicts, contested)


def sign_counts(deltas: np.ndarray) -> tuple[int, int]:
    """Counts, in ``[models, n]``, columns with both signs, and columns with at least two nonzero entries.

    Zeros take no side; NaN neither.
    """
    positive, negative = deltas[0] > 0, deltas[0] < 0
    once = positive | negative
    twice = np.zeros_like(once)
    for delta in deltas[1:]:
        above, below = delta > 0, delta < 0
        nonzero = above | below
        twice |= once & nonzero
        once |= nonzero
        positive |= above
        negative |= below
    return int(np.count_nonzero(positive & negative)), int(np.count_nonzero(twice))
