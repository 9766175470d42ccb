"""HTML by construction."""

from __future__ import annotations

import json

import pytest

from merge_models.evals.report.html import json_script, table, tag
from tests.evals.report.cases import NASTY


def test_html_is_escaped_by_construction() -> None:
    made = tag("p", NASTY[0], tag("b", "<"), [None, 3], class_='a"b', title="x", hidden=True, open=None)
    assert made.startswith('<p class="a&quot;b" title="x" hidden>&lt;/script&gt;')
    assert made.endswith("<b>&lt;</b>3</p>")
    assert "<td" in table(None, ["a", "b"], [["<", ">"]], label="l")


def test_json_in_scripts_cannot_end_them() -> None:
    text = json_script("x", {"a": [*NASTY, "<!--", "]]>", "\u2028"]})
    inner = text.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert not set("<>&") & set(inner) and inner.isascii()
    assert json.loads(inner)["a"][0] == NASTY[0]
    with pytest.raises(ValueError, match="JSON"):
        json_script("x", float("nan"))
