"""Norm mean: the linear mean brought back to the weighted mean of the norms."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import NormMean
from tests.merge.strategies.oracles import close, merged, siblings

WEIGHTS = (0.5, 0.3, 0.2)


@pytest.mark.parametrize("about_base", [False, True])
def test_it_has_the_mean_norm_and_the_mean_s_direction(about_base: bool) -> None:
    base, parents = siblings()
    origin = base if about_base else np.zeros_like(base)
    points = np.array(parents) - origin
    mean = np.tensordot(WEIGHTS, points, 1)
    length = float(np.dot(WEIGHTS, [np.linalg.norm(point) for point in points]))
    strategy = NormMean(weight=WEIGHTS, origin="base" if about_base else "zero")
    wanted = origin + mean * length / np.linalg.norm(mean)
    assert close(merged(strategy, parents, base if about_base else None), wanted)
