"""NearSwap: each element of the base moves towards the parent's, by at most t."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import NearSwap
from tests.merge.strategies.oracles import close, merged, siblings


@pytest.mark.parametrize("t", [0.0, 0.05, 10.0])
def test_moves_are_clamped(t: float) -> None:
    base, (parent,) = siblings(1)
    assert close(merged(NearSwap(t=t), [parent], base), base + np.clip(parent - base, -t, t))
