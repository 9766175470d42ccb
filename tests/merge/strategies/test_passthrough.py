"""Passthrough: one model as it is, or scaled."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge import PlanError
from merge_models.merge.strategies import Passthrough
from tests.merge.strategies.oracles import merged, siblings


def test_it_copies_or_scales() -> None:
    _, (parent,) = siblings(1)
    assert np.array_equal(merged(Passthrough(), [parent]), parent)
    assert np.array_equal(merged(Passthrough(scale=0.5), [parent]), 0.5 * parent)


def test_it_takes_one_model() -> None:
    with pytest.raises(PlanError, match="passthrough merges exactly 1 model, not 2"):
        merged(Passthrough(), siblings(2)[1])
