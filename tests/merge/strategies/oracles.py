"""A base, siblings, and one tensor's merge in float64: what formulas of task vectors are tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merge_models.merge.contract.strategy import AbstractStrategy
from tests.helpers import merge_states

Array = NDArray[np.float64]
WEIGHTS = (0.5, 0.3, -0.2)


def siblings(count: int = 3, rows: int = 11, columns: int = 9, seed: int = 0) -> tuple[Array, list[Array]]:
    """Returns a base and its fine-tunes, which agree in some elements and with the base in others."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((rows, columns))
    changes = rng.standard_normal((count, rows, columns)) * 0.1
    changes[:, 0, :3] = 0.0
    changes[1:, 1, :3] = changes[0, 1, :3]
    return base, [base + change for change in changes]


def merged(strategy: AbstractStrategy, parents: list[Array], base: Array | None = None, **more: Any) -> Array:
    """Returns one tensor's merge, through the whole loop."""
    states = [{"w": torch.from_numpy(parent.copy())} for parent in parents]
    held = None if base is None else {"w": torch.from_numpy(base.copy())}
    return merge_states(states, strategy, base=held, **more)["w"].numpy()


def close(left: Array, right: Array, tolerance: float = 1e-12) -> bool:
    """Returns whether two arrays agree, against the size of the second."""
    return bool(np.abs(left - right).max() <= tolerance * np.abs(right).max())


def elected(terms: Array, weights: Array | None = None, *, normalize: bool = False) -> Array:
    """Returns what TIES makes of weighted task vectors `[N, ...]`: the sum of those of the elected sign.

    Args:
        terms: weighted and thinned task vectors.
        weights: the weights `[N]` that ``normalize`` divides by.
        normalize: whether the sum is divided by the weights of those in it.
    """
    sign = np.where(terms.sum(0) >= 0, 1.0, -1.0)
    taking = (np.sign(terms) == sign) & (terms != 0)
    total = np.where(taking, terms, 0.0).sum(0)
    if not normalize:
        return total
    assert weights is not None
    divisor = np.where(taking, weights[:, None, None], 0.0).sum(0)
    return np.where(divisor != 0, total / np.where(divisor != 0, divisor, 1.0), 0.0)


def largest(change: Array, count: int) -> Array:
    """Returns a mask of the largest elements by size; of equal ones those that come first."""
    order = np.argsort(-np.abs(change).astype(np.float32).ravel(), kind="stable")[:count]
    mask = np.zeros(change.size, dtype=bool)
    mask[order] = True
    return mask.reshape(change.shape)
