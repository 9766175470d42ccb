"""RAM: what one parent alone has changed is added, what several have is averaged."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import Ram, RamPlus
from tests.merge.strategies.oracles import close, merged, siblings


@pytest.mark.parametrize("epsilon", [1e-5, 0.05])
def test_shared_changes_are_averaged(epsilon: float) -> None:
    base, parents = siblings()
    changes = np.array(parents) - base
    counts = np.abs(changes).astype(np.float32) > np.float32(epsilon)
    mean = np.where(counts, changes, 0).sum(0) / np.maximum(counts.sum(0), 1)
    assert close(merged(Ram(epsilon=epsilon), parents, base), base + mean)


def test_own_changes_are_amplified_by_what_is_shared() -> None:
    base, parents = siblings()
    changes, epsilon = np.array(parents) - base, 0.05
    counts = np.abs(changes).astype(np.float32) > np.float32(epsilon)
    alone, together = counts & (counts.sum(0) == 1), counts & (counts.sum(0) > 1)
    ratio = together.sum((1, 2)) / alone.sum((1, 2))
    factors = 1 + 0.3 * np.minimum(ratio, 0.8)
    own = (np.where(alone, changes, 0) * factors[:, None, None]).sum(0)
    shared = np.where(together, changes, 0).sum(0) / np.maximum(together.sum(0), 1)
    strategy = RamPlus(epsilon=epsilon, r=0.3, alpha=0.8)
    assert close(merged(strategy, parents, base), base + own + shared)
