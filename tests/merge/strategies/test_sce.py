"""SCE: variances select, energies weigh, the minority's signs are erased."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import Sce
from tests.merge.strategies.oracles import close, largest, merged, siblings


@pytest.mark.parametrize("topk", [1.0, 0.4])
def test_the_three_steps(topk: float) -> None:
    base, parents = siblings()
    changes = np.array(parents) - base
    variance = np.var(np.array(parents), axis=0)
    differing = int((variance.astype(np.float32) > 1e-39).sum())
    mask = largest(variance, int(topk * differing)) if topk < 1 else np.ones(base.shape, bool)
    selected = np.where(mask, changes, 0.0)
    shares = (selected**2).sum((1, 2)) / (selected**2).sum()
    sign = np.where(selected.sum(0) >= 0, 1.0, -1.0)
    weights = np.where((np.sign(selected) == sign), shares[:, None, None], 0.0)
    change = (weights * selected).sum(0) / np.where(weights.sum(0) > 0, weights.sum(0), 1.0)
    assert close(merged(Sce(select_topk=topk), parents, base), base + change, 1e-11)


def test_nothing_selected_is_the_base() -> None:
    base, parents = siblings()
    assert np.array_equal(merged(Sce(select_topk=0.0), parents, base), base)
