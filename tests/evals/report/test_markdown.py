"""The section for a model card."""

from __future__ import annotations

import re

from merge_models.evals.report import to_markdown
from tests.evals.report.cases import CASES
from tests.evals.report.reading import MARKDOWN, Reader, over_cases


@over_cases
def test_markdown_says_the_verdict_first(case: str) -> None:
    made = CASES[case]()
    text = to_markdown(made)
    assert text.startswith("## Evaluation of the merge\n\n") and text.endswith("\n")
    if made.verdict is not None:
        words = {"healthy": "✓ Healthy", "degraded": "▲ Degraded", "collapsed": "✕ Collapsed"}
        assert text.split("\n")[2].startswith(f"**{words[made.verdict.status]}.**")
    rendered = MARKDOWN.render(text)
    allowed = {"h2", "h3", "p", "strong", "code", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    assert {name for name, _ in Reader(rendered).elements} <= allowed
    for found in re.findall(r"<table>.*?</table>", rendered, re.DOTALL):
        rows = [row.count("</td>") + row.count("</th>") for row in found.split("</tr>")[:-1]]
        assert len(set(rows)) == 1
