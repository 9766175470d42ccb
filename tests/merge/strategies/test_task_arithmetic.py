"""Task arithmetic: the base plus a weighted sum of task vectors."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge import PlanError
from merge_models.merge.strategies import TaskArithmetic
from tests.merge.strategies.oracles import WEIGHTS, close, merged, siblings


@pytest.mark.parametrize("scale", [0.7, 1.0, 1e9])
@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_the_base_and_a_sum_of_changes(scale: float, normalize: bool) -> None:
    base, parents = siblings()
    weights = np.array(WEIGHTS) / (sum(WEIGHTS) if normalize else 1)
    wanted = base + scale * np.tensordot(weights, np.array(parents) - base, 1)
    assert close(
        merged(TaskArithmetic(weight=WEIGHTS, lambda_=scale, normalize=normalize), parents, base), wanted
    )


def test_a_negative_weight_takes_a_skill_away() -> None:
    base, (parent,) = siblings(1)
    assert close(merged(TaskArithmetic(weight=-1.0), [parent], base), 2 * base - parent)


def test_it_needs_a_base() -> None:
    with pytest.raises(PlanError, match="task_arithmetic needs a base model"):
        merged(TaskArithmetic(), siblings()[1])
