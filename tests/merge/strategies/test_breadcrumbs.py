"""Breadcrumbs: the largest and the smallest elements are dropped, by the paper's counts."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import Breadcrumbs, BreadcrumbsTies
from tests.merge.strategies.oracles import Array, close, elected, largest, merged, siblings


def band(change: Array, density: float, gamma: float) -> Array:
    """Of n elements int(gamma n) largest are dropped, then the smallest until int(density n) are left."""
    count = change.size
    kept, outliers = int(density * count), int(gamma * count)
    small = max(0, count - kept - outliers)
    return np.where(largest(change, count - small) > largest(change, count - small - kept), change, 0.0)


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.01), (0.3, 0.9)])
def test_what_is_between_two_cuts_is_kept(density: float, gamma: float) -> None:
    base, parents = siblings()
    bands = np.array([band(parent - base, density, gamma) for parent in parents])
    assert close(merged(Breadcrumbs(density=density, gamma=gamma), parents, base), base + bands.sum(0))
    wanted = base + elected(bands)
    assert close(merged(BreadcrumbsTies(density=density, gamma=gamma), parents, base), wanted)


def test_density_1_keeps_everything() -> None:
    base, parents = siblings()
    assert close(merged(Breadcrumbs(gamma=0.2), parents, base), base + (np.array(parents) - base).sum(0))
