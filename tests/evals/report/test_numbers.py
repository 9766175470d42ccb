"""Numbers as a reader wants them."""

from __future__ import annotations

import pytest

from merge_models.evals.report.numbers import interval, measured, number, percent, ranges
from merge_models.evals.schema import Estimate


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (0.98765, "0.988"),
        (12.3456, "12.3"),
        (1234.5, "1,234"),
        (134_515_008, "134,515,008"),
        (0.00012345, "1.23e-4"),
        (-2.5e7, "−2.50e7"),
        (-0.5, "−0.500"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_estimates_and_ranges() -> None:
    assert measured(Estimate(value=0.5, low=0.25, high=0.75)) == "0.500 [0.250, 0.750]"
    assert measured(Estimate(value=0.5)) == "0.500" and measured(None) == "–" and interval(None) == ""
    assert ranges((7, 1, 2, 3, 0)) == "0–3, 7" and ranges(()) == ""
    assert [percent(v) for v in (None, 0.0, 0.004, 0.94, 1.0, -0.5)] == [
        "–",
        "0 %",
        "0.4 %",
        "94 %",
        "100 %",
        "−50 %",
    ]
