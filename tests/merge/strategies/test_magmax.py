"""MagMax: of each element's task vectors the largest."""

from __future__ import annotations

import numpy as np

from merge_models.merge.strategies import MagMax
from tests.merge.strategies.oracles import close, merged, siblings


def test_the_largest_change_is_taken() -> None:
    base, parents = siblings()
    weights = np.array([1.0, 0.7, -1.3])
    terms = weights[:, None, None] * (np.array(parents) - base)
    chosen = np.take_along_axis(terms, np.abs(terms).argmax(0)[None], 0)[0]
    ours = merged(MagMax(weight=tuple(weights), lambda_=0.5), parents, base)
    assert close(ours, base + 0.5 * chosen)


def test_of_two_that_differ_in_sign_only_the_positive_is_taken() -> None:
    base = np.zeros((2, 2))
    change = np.array([[1.0, -2.0], [3.0, 0.5]])
    assert np.array_equal(merged(MagMax(), [base - change, base + change], base), np.abs(change))
