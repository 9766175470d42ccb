"""Signs of degenerate text."""

from __future__ import annotations

import pytest

from merge_models.evals.diagnostics.tasks.degenerate import distinct2, is_looping, words
from merge_models.evals.measures.tasks.degenerate import count_degenerate


@pytest.mark.parametrize(
    ("text", "looping", "low"),
    [
        ("The cat sat on the mat and looked out.", False, False),
        ("no no no", True, False),
        ("on and on and on and on", True, True),
        ("a b c d a b c e a b c", True, False),
        ("我们去学校学习新的知识。", False, False),
        ("好好好好好好", True, True),
        ("......", True, True),
        ("x = f(x)\ny = g(y)\nz = h(z)", False, False),
        ("word", False, False),
        ("", False, False),
    ],
)
def test_loops_and_low_variety_are_counted(text: str, looping: bool, low: bool) -> None:
    found = words(text)
    share = distinct2(found)
    assert is_looping(found) is looping
    assert (share is not None and share < 0.5) is low


def test_degenerate_shares() -> None:
    pairs = [("p", ""), ("p", " \n"), ("p", "la la la la la la"), ("p", "one two three four")]
    found = count_degenerate("m", pairs)
    assert (found.n, found.empty, found.looping, found.low_distinct) == (4, 0.5, 0.25, 0.25)
    assert found.distinct2 == pytest.approx((0.2 + 1.0) / 2)
    assert found.samples[2] == ("p", "la la la la la la")
