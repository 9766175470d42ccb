"""Consensus: TALL masks of each parent, and how many of them must agree."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import Consensus
from tests.merge.strategies.oracles import close, merged, siblings


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("mask_lambda", [0.2, 0.6])
def test_elements_must_matter_to_k_parents(k: int, mask_lambda: float) -> None:
    base, parents = siblings(seed=3)
    weights = np.array([0.5, 0.3, 0.2])[:, None, None]
    terms = weights * (np.array(parents) - base)
    total = terms.sum(0)
    matters = np.abs(terms) >= mask_lambda * np.abs(total - terms)
    wanted = base + 0.9 * np.where(matters.sum(0) >= k, total, 0.0)
    strategy = Consensus(weight=(0.5, 0.3, 0.2), mask_lambda=mask_lambda, k=k, lambda_=0.9)
    assert close(merged(strategy, parents, base), wanted)
