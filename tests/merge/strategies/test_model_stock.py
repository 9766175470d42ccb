"""Model Stock: against the paper's formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from merge_models.merge.strategies import (
    ModelStock,
)
from tests.helpers import assert_same_bits
from tests.merge.strategies.sphere import (
    family,
    gap,
    merged,
)


class TestModelStock:
    @pytest.mark.parametrize("count", [2, 4])
    def test_formula(self, count: int) -> None:
        base, *points = family(0.1, count)
        shared = torch.randn(base.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        points = [x + 0.1 * shared for x in points]
        expected = self.formula(base, points)
        assert gap(merged(points, ModelStock(), base), expected) < 1e-14
        rows = torch.stack([self.formula(base[i], [x[i] for x in points]) for i in range(len(base))])
        assert gap(merged(points, ModelStock(filter_wise=True), base), rows) < 1e-14

    @staticmethod
    def formula(base: Tensor, points: list[Tensor]) -> Tensor:
        d = [(x - base).flatten() for x in points]
        pairs = [(i, j) for i in range(len(d)) for j in range(i)]
        c = sum(float(d[i] @ d[j] / (d[i].norm() * d[j].norm())) for i, j in pairs) / len(pairs)
        t = max(0.0, len(d) * c / (1 + (len(d) - 1) * c))
        return t * torch.stack(points).mean(0) + (1 - t) * base

    def test_singular_cases_are_the_base(self) -> None:
        base, a, _ = family(0.1, 2)
        assert_same_bits(merged([a, 2 * base - a], ModelStock(), base), base)
        assert_same_bits(merged([base, base], ModelStock(), base), base)
        base, a = base.float(), a.float()
        assert_same_bits(merged([a, base], ModelStock(filter_wise=True), base), base)

    def test_parents_that_agree_leave_nothing_to_the_base(self) -> None:
        base, a, _ = family(0.1, 2)
        assert_same_bits(merged([a, a, a], ModelStock(), base), a)
