"""Distances between next-token distributions at their ends and near zero."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.predictions.fisher_rao import fisher_rao
from merge_models.evals.diagnostics.predictions.js import js
from merge_models.evals.diagnostics.predictions.kl import kl


def test_distances_at_their_ends() -> None:
    far = [Distributions.of(torch.tensor([[0.0, -400.0], [0.0, -400.0]]).roll(n, 1)) for n in (0, 1)]
    assert js(*far).tolist() == pytest.approx([np.log(2)] * 2, rel=1e-5)
    assert fisher_rao(*far).tolist() == pytest.approx([np.pi] * 2, rel=1e-5)
    assert kl(*far).tolist() == pytest.approx([400] * 2)
    zero = Distributions.of(torch.tensor([[0.0, -torch.inf]]))
    assert kl(zero, zero).isnan().sum() == 0
    near = torch.randn(1, 50)
    p, q = Distributions.of(near), Distributions.of(near + 3e-2 * torch.randn(1, 50))
    small = kl(p, q).item()
    assert js(p, q).item() == pytest.approx(small / 4, rel=0.05)
    assert fisher_rao(p, q).item() ** 2 == pytest.approx(2 * small, rel=0.05)
