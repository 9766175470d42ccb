"""PCB: parents compete for each element, by the formulas of the authors' program in float64."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import Pcb
from tests.merge.strategies.oracles import Array, close, merged, siblings


def competed(base: Array, parents: list[Array], ratio: float, scale: float) -> Array:
    changes = np.array(parents) - base
    sizes = np.abs(changes).astype(np.float32).astype(np.float64)
    low, high = sizes.min((1, 2), keepdims=True), sizes.max((1, 2), keepdims=True)
    own = np.exp(len(parents) * ((sizes - low) / (high - low)) ** 2)
    scores = own * np.tanh(changes * changes.sum(0))
    weights = np.zeros_like(scores)
    for number, score in enumerate(scores):
        count = max(1, int(np.ceil(ratio * score.size)))
        least, most = max(np.sort(score.ravel())[-count], 0.0), score.max()
        scaled = np.clip((score - least) / (most - least), 0, 1)
        weights[number] = np.where((score >= least) & (score >= 0), scaled, 0)
    total = weights.sum(0)
    mean = (weights * changes).sum(0) / np.where(total > 0, total, 1)
    return base + scale * np.where(total > 0, mean, 0)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_the_best_scores_weight_the_mean(ratio: float) -> None:
    base, parents = siblings(seed=4)
    ours = merged(Pcb(ratio=ratio, scope="tensor", lambda_=0.8), parents, base)
    wanted = competed(base, parents, ratio, 0.8)
    agree = np.abs(ours - wanted) <= 1e-5 * np.abs(wanted).max()
    assert agree.mean() > 0.97  # scores are float32 keys: elements at the edge may fall on either side


def test_equal_parents_keep_where_they_score() -> None:
    base, (parent, *_) = siblings(seed=4)
    ours = merged(Pcb(ratio=1.0, scope="tensor"), [parent, parent.copy()], base)
    assert all(close(ours[r, c : c + 1], parent[r, c : c + 1]) or ours[r, c] == base[r, c]
               for r in range(base.shape[0]) for c in range(base.shape[1]))  # fmt: skip
