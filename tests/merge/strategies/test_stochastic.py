"""Stochastic: tensors, rows or blocks of one parent each, drawn by weight."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge import RecipeError
from merge_models.merge.strategies import Stochastic
from tests.merge.strategies.oracles import merged, siblings


def test_rows_are_drawn_by_weight() -> None:
    _, parents = siblings(3, rows=4000, columns=3)
    ours = merged(Stochastic(weight=(5, 3, 2), per="row"), parents)
    shares = [float((ours == parent).all(1).mean()) for parent in parents]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_tensor_is_one_parent_s_and_another_seed_another_child() -> None:
    _, parents = siblings(2)
    children = [merged(Stochastic(), parents, seed=seed) for seed in range(12)]
    taken = [[np.array_equal(child, parent) for parent in parents] for child in children]
    assert all(sum(one) == 1 for one in taken) and len({tuple(one) for one in taken}) == 2


def test_nothing_can_be_drawn_by_weights_of_zero() -> None:
    with pytest.raises(RecipeError, match="weights are all zero"):
        merged(Stochastic(weight=0.0), siblings(2)[1])
