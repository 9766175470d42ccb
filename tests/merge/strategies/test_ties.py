"""TIES: trim, elect, average; against the paper's three steps in float64."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.merge.strategies import Ties
from tests.merge.strategies.oracles import WEIGHTS, close, elected, largest, merged, siblings


@pytest.mark.parametrize("density", [1.0, 0.37, 0.05])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", ["none", "l1"])
def test_the_three_steps(density: float, normalize: bool, rescale: str) -> None:
    base, parents = siblings()
    changes = np.array(parents) - base
    count = max(1, int(density * base.size))
    trimmed = np.array([np.where(largest(change, count), change, 0.0) for change in changes])
    if rescale == "l1":
        trimmed *= (np.abs(changes).sum((1, 2)) / np.abs(trimmed).sum((1, 2)))[:, None, None]
    weights = np.array(WEIGHTS)
    change = elected(weights[:, None, None] * trimmed, weights, normalize=normalize)
    strategy = Ties(weight=WEIGHTS, density=density, lambda_=0.8, normalize=normalize, rescale=rescale)
    assert close(merged(strategy, parents, base), base + 0.8 * change)


def test_the_paper_s_trim_is_over_the_whole_model() -> None:
    base, parents = siblings()
    large = 10 * siblings(seed=1)[0]
    import torch

    from merge_models.merge import merge

    def state(first: np.ndarray, second: np.ndarray) -> dict[str, torch.Tensor]:
        return {"a": torch.from_numpy(first.copy()), "b": torch.from_numpy(second.copy())}

    states = [state(parent, large + 10 * (parent - base)) for parent in parents]
    result = merge(states, Ties(density=0.5, scope="model"), base=state(base, large))
    kept = [np.count_nonzero(result[name].numpy() != origin) for name, origin in (("a", base), ("b", large))]
    assert kept[0] < base.size / 2 < kept[1]  # of the larger changes more are kept


def test_of_nothing_nothing_is_left() -> None:
    base, parents = siblings()
    assert np.array_equal(merged(Ties(density=0.0), parents, base), base)
