"""DARE: random masks keyed by seed and content, scaled so that the mean is right."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import DareLinear, DareTies
from tests.merge.strategies.oracles import close, merged, siblings


def test_what_is_kept_is_divided_by_its_probability() -> None:
    base, (parent,) = siblings(1, 200, 150)
    change = merged(DareLinear(density=0.3), [parent], base) - base
    kept = np.abs(change) > 1e-14
    moved = np.abs(parent - base) > 0
    assert kept.sum() / moved.sum() == pytest.approx(0.3, abs=0.01)
    assert close(change[kept], ((parent - base) / 0.3)[kept], 1e-10)


def test_the_mean_over_seeds_is_the_task_vector() -> None:
    base, (parent,) = siblings(1)
    draws = [merged(DareLinear(density=0.5), [parent], base, seed=seed) - base for seed in range(100)]
    error = np.abs(np.mean(draws, 0) - (parent - base)).max()
    assert error < 5 * np.abs(parent - base).max() / np.sqrt(100)


@pytest.mark.parametrize("rescale", ["l1", "none"])
def test_other_ways_to_rescale(rescale: str) -> None:
    base, (parent,) = siblings(1, 40, 30)
    change = merged(DareLinear(density=0.4, rescale=rescale), [parent], base) - base
    whole, kept = np.abs(parent - base), np.abs(change) > 1e-14
    wanted = whole.sum() if rescale == "l1" else whole[kept].sum()
    assert np.abs(change).sum() == pytest.approx(wanted, rel=1e-9)


def test_with_density_1_both_are_sums_of_task_vectors() -> None:
    base, parents = siblings()
    changes = np.array(parents) - base
    assert close(merged(DareLinear(), parents, base), base + changes.sum(0))
    sign = np.where(changes.sum(0) >= 0, 1, -1)
    agreeing = np.where(np.sign(changes) == sign, changes, 0).sum(0)
    assert close(merged(DareTies(), parents, base), base + agreeing)


def test_masks_follow_the_seed_and_not_the_order() -> None:
    base, parents = siblings(2)
    first = merged(DareLinear(density=0.5), parents, base, seed=3)
    assert close(merged(DareLinear(density=0.5), parents[::-1], base, seed=3), first, 1e-14)
    assert not close(merged(DareLinear(density=0.5), parents, base, seed=4), first, 1e-3)
