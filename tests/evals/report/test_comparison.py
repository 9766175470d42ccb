"""Many merges side by side."""

from __future__ import annotations

import html as html_module
import re

import pytest

from merge_models.evals.report import to_html, to_markdown
from merge_models.evals.report.comparison import compare
from tests.evals.report.cases import CASES
from tests.evals.report.reading import MARKDOWN, Reader


def test_a_comparison_ranks_by_verdict_then_score() -> None:
    names = ("collapsed", "healthy", "degraded", "not finite", "healthy", "bare")
    made = compare([CASES[name]() for name in names])
    assert [r.status for r in made.ranking] == [
        "healthy",
        "healthy",
        "degraded",
        "collapsed",
        "collapsed",
        None,
    ]
    assert [r.rank for r in made.ranking] == [1, 1, 3, 4, 5, 6]
    assert [r.name for r in made.ranking][:2] == ["smollm-merged", "smollm-merged (2)"]
    assert made.ranking[4].score is None
    assert [e.merge.name for e in made.evaluations][3] == "soup of strangers"
    with pytest.raises(ValueError, match="nothing to compare"):
        compare([])


def test_a_comparison_in_every_format() -> None:
    made = compare([CASES[name]() for name in CASES])
    assert type(made).model_validate_json(made.to_json()) == made
    reader = Reader(to_html(made))
    assert [a.get("data-chart") for _, a in reader.elements if "data-chart" in a] == [
        "variance_ratio",
        "effective_rank_ratio",
    ]
    rendered = Reader(MARKDOWN.render(to_markdown(made)))
    assert sum(name == "tr" for name, _ in rendered.elements) == len(CASES) + 1
    assert {name for name, _ in rendered.elements} <= {
        *("h2", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "li", "p")
    }


def test_a_comparison_keeps_evidence_and_remedy_apart() -> None:
    made = CASES["collapsed"]()
    assert made.verdict is not None
    told = re.findall(
        r"<dd>(.*?)</dd>", compare([made, CASES["healthy"]()]).to_html().split("What is known")[2]
    )
    bad = [finding for finding in made.verdict.findings if finding.status != "healthy"]
    words = [html_module.unescape(re.sub("<.*?>", "", text)) for text in told]
    assert len(bad) > 0 and words[1::2] == [finding.remedy.replace("`", "") for finding in bad]
    assert all(
        finding.evidence.replace("`", "") in text for finding, text in zip(bad, words[::2], strict=True)
    )


def test_comparisons_without_profiles_have_a_table() -> None:
    text = compare([CASES["weights only"](), CASES["bare"]()]).to_html()
    assert "Profiles by depth" not in text and len(text) < 60_000
