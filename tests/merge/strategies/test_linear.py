"""Linear: the weighted mean, in float64 and rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge_models.merge import RecipeError, soup
from merge_models.merge.strategies import Linear
from tests.merge.strategies.oracles import WEIGHTS, close, merged, siblings


@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_the_weighted_mean(normalize: bool) -> None:
    _, parents = siblings()
    weights = np.array(WEIGHTS) / (sum(WEIGHTS) if normalize else 1)
    wanted = np.tensordot(weights, np.array(parents), 1)
    assert close(merged(Linear(weight=WEIGHTS, normalize=normalize), parents), wanted)


def test_narrow_results_are_float64_sums_rounded_once() -> None:
    _, parents = siblings(rows=50, columns=40)
    states = [{"w": torch.from_numpy(parent).bfloat16()} for parent in parents]
    scaled = [share * state["w"].double() for share, state in zip((0.5, 0.3, 0.2), states, strict=True)]
    wanted = torch.stack(scaled).sum(0).bfloat16()
    assert torch.equal(soup(states, weights=(5, 3, 2))["w"], wanted)


def test_weights_that_cancel_out_are_refused() -> None:
    with pytest.raises(RecipeError, match="sum to zero and cannot be normalised"):
        merged(Linear(weight=(1, -1)), siblings(2)[1])
