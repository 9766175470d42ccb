"""Answers that are right word for word."""

from __future__ import annotations

import pytest

from merge_models.evals.measures.tasks.exact import is_right


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("72.", "72", True),
        ("72. and more", "72.", True),
        ("721", "72", False),
        ("7", "72", False),
        ("  Paris\n", "Paris", True),
        ("Parisian", "Paris", False),
        ("paris", "Paris", False),
        ("", "72", False),
        ("72</s>", "72", True),
        ("abc.def", "abc.", True),
        ("東京都", "東京", False),
    ],
)
def test_exact_match(text: str, wanted: str, right: bool) -> None:
    assert is_right(text, wanted) is right
