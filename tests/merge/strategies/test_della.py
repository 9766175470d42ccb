"""DELLA: the larger an element in its row, the more often it is kept."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge import RecipeError
from merge_models.merge.strategies import Della, DellaLinear
from tests.merge.strategies.oracles import close, merged, siblings


def test_probabilities_rise_with_the_rank_in_the_row() -> None:
    base, (parent,) = siblings(1, 4000, 5, seed=2)
    ours = merged(DellaLinear(density=0.5, epsilon=0.3), [parent], base) - base
    change = parent - base
    kept = np.abs(ours) > 1e-14
    ranks = np.abs(change).argsort(1).argsort(1)[2:]
    for rank, probability in enumerate(np.linspace(0.2, 0.8, 5)):
        here = ranks == rank
        assert kept[2:][here].mean() == pytest.approx(probability, abs=0.03)
        # What is kept is divided by its own probability.
        both = here & kept[2:]
        right = np.isclose(ours[2:][both], change[2:][both] / probability, rtol=1e-6, atol=0)
        assert right.mean() > 0.995  # ranks are of float32 keys, which may be equal


def test_with_density_1_it_is_a_sum_or_an_election() -> None:
    base, parents = siblings()
    changes = np.array(parents) - base
    assert close(merged(DellaLinear(), parents, base), base + changes.sum(0))
    sign = np.where(changes.sum(0) >= 0, 1, -1)
    agree = (np.sign(changes) == sign) & (changes != 0)
    mean = np.where(agree, changes, 0).sum(0) / np.maximum(agree.sum(0), 1)
    assert close(merged(Della(), parents, base), base + mean)


def test_impossible_probabilities_are_refused() -> None:
    base, parents = siblings()
    with pytest.raises(RecipeError, match="give probabilities from -0.05 to 0.25"):
        merged(Della(density=0.1, epsilon=0.15), parents, base)
