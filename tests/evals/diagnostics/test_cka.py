"""CKA is the kernel formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge_models.evals.diagnostics.activations.cka import linear_cka
from tests.evals.measures.activations.nets import kernel_cka


@pytest.mark.parametrize("width", [3, 20, 200])
def test_cka_is_the_kernel_formula_at_any_width(width: int) -> None:
    draw = np.random.default_rng(width)
    x = draw.standard_normal((60, width)) + 3
    y = x @ draw.standard_normal((width, 30)) + draw.standard_normal((60, 30))
    found = linear_cka(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(kernel_cka(x, y), rel=1e-9)
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(-7 * x + 1)) == pytest.approx(1)


def test_cka_of_independent_wide_data_is_near_zero_and_of_constant_data_undefined() -> None:
    x, y = torch.randn(100, 2000), torch.randn(100, 2000)
    found = linear_cka(x, y)
    assert found is not None and abs(found) < 0.05
    assert linear_cka(x, torch.ones(100, 5)) is None
    assert linear_cka(x[:3], y[:3]) is None
