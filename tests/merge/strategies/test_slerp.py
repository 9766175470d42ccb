"""SLERP: against Shoemake's formula."""

from __future__ import annotations

import pytest
import torch

from merge_models.manifolds import Gram
from merge_models.merge.strategies import (
    Slerp,
)
from tests.helpers import assert_same_bits, merge_states
from tests.merge.strategies.sphere import (
    family,
    gap,
    merged,
    slerp_formula,
)


class TestSlerp:
    @pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
    @pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
    def test_formula(self, t: float, spread: float) -> None:
        _, a, b = family(spread, 2)
        assert gap(merged([a, 2 * b], Slerp(t=t)), slerp_formula(a, 2 * b, t)) < 1e-14

    def test_small_angles_are_no_special_case(self) -> None:
        _, a, b = family(1e-9, 2)
        assert gap(merged([a, b], Slerp(t=0.3)) - a, 0.3 * (b - a)) < 1e-6
        _, a, b = family(1e-3, 2)
        assert gap(merged([a, b], Slerp(t=0.3)), slerp_formula(a, b, 0.3)) < 1e-15

    def test_bf16_is_rounded_once(self) -> None:
        _, a, b = [x.bfloat16() for x in family(0.05, 2, size=(64, 64))]
        assert_same_bits(merged([a, b], Slerp(t=0.3)), slerp_formula(a.double(), b.double(), 0.3).bfloat16())

    def test_ends_are_the_models(self) -> None:
        _, a, b = family(0.4, 2)
        assert_same_bits(merged([a, b], Slerp(t=0)), a)
        assert_same_bits(merged([a, b], Slerp(t=1)), b)

    def test_a_base_is_the_first_end(self) -> None:
        _, a, b = family(0.4, 2)
        wanted = merged([a, b], Slerp(t=0.3))
        first, second = {"w": a}, {"w": b}
        for models in ([second], [second, first], [first, second]):
            assert_same_bits(merge_states(models, Slerp(t=0.3), base=first)["w"], wanted)

    def test_without_an_arc_the_line_is_taken(self) -> None:
        _, a, _ = family(0.4, 2)
        assert gap(merged([a, -2 * a], Slerp(t=0.25)), 0.25 * a) < 1e-15
        assert gap(merged([torch.zeros_like(a), a], Slerp(t=0.25)), 0.25 * a) < 1e-15
        opposite = Gram.from_points(torch.stack([a.flatten(), -a.flatten()]))
        assert Slerp().resolved(2).mixture(opposite).figures["arc"] is False
