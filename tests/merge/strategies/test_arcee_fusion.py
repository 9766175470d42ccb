"""Arcee Fusion: large changes in rows that diverge are taken, by the formula in float64."""

from __future__ import annotations

import numpy as np

from merge_models.merge.strategies import ArceeFusion
from tests.merge.strategies.oracles import merged, siblings


def test_changes_above_the_threshold_are_taken() -> None:
    base, (parent,) = siblings(1, 30, 20)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    p, q = softmax(parent), softmax(base)
    divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
    importance = (np.abs(parent - base) * divergence).astype(np.float32)
    order = np.sort(importance.ravel())
    low, middle, high = (order[int(quarter * (order.size - 1))] for quarter in (0.25, 0.5, 0.75))
    taken = importance >= np.float32(middle + 1.5 * (high - low))
    ours = merged(ArceeFusion(), [parent], base)
    assert 0 < taken.sum() < taken.size / 2
    assert (ours == np.where(taken, parent, base)).mean() > 0.995  # what meets the edge may fall either way
