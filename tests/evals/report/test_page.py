"""Reports: every case in every format, nothing of the input as markup, nothing undefined as a number."""

from __future__ import annotations

import hashlib
import html as html_module
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from merge_models.evals.report import charts, to_html, to_markdown
from merge_models.evals.report.comparison import compare
from merge_models.evals.report.escape import block, line, markdown_code, markdown_prose, markdown_text
from merge_models.evals.report.html import json_script, table, tag
from merge_models.evals.report.inspection import inspection_markdown
from merge_models.evals.report.numbers import interval, measured, number, percent, ranges
from merge_models.evals.report.reference import reference
from merge_models.evals.schema import Estimate, Evaluation, Inspection, TensorWeights
from tests.evals.report.cases import CASES, NASTY, evaluation, models_of
from tests.helpers import ROOT

ASSETS = ROOT / "evals" / "report" / "assets"
DOCS = ROOT / "docs"
over_cases = pytest.mark.parametrize("case", CASES)
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


class Reader(HTMLParser):
    """What a browser would make of a page: elements, attributes, visible text; unbalanced tags fail."""

    VOID = {"meta", "br", "col", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def ids(self) -> list[str]:
        return [i for _, attributes in self.elements if (i := attributes.get("id"))]


# Numbers and escapes


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


@pytest.mark.parametrize("text", NASTY)
def test_a_line_is_one_visible_bounded_line(text: str) -> None:
    shown = line(text)
    assert shown.isprintable() and "\n" not in shown and len(shown) <= 201 + 4 * 20


def test_languages_keep_their_spelling() -> None:
    assert line("日本\u3000語\u00a0x") == "日本 語 x"
    assert line("می\u200cخواهم") == "می\u200cخواهم"
    assert block("a\tb\r\nc") == "a    b\nc"


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("escape", [markdown_text, markdown_code, markdown_prose])
def test_markdown_shows_text_as_it_is(text: str, escape: Any) -> None:
    """Rendered by another implementation: a table of two cells, no link, image or HTML of the input's."""
    rendered = MARKDOWN.render(f"| a | b |\n| --- | --- |\n| {escape(text)} | end |\n")
    reader = Reader(rendered)
    assert {name for name, _ in reader.elements} <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert sum(name == "td" for name, _ in reader.elements) == 2
    if escape is markdown_text:
        assert reader.words == f"a b {line(text, 4000)} end"


@pytest.mark.parametrize(
    "text", ["# h", "- x", "+ x", "1. x", "12) x", "> q", "---", "===", "* x", "~~~", "```"]
)
def test_a_sentence_begins_no_block(text: str) -> None:
    reader = Reader(MARKDOWN.render(f"- {markdown_text(text)}\n"))
    assert [name for name, _ in reader.elements] == ["ul", "li"] and reader.words == text
    assert MARKDOWN.render(markdown_text(text)) == f"<p>{html_module.escape(text, quote=False)}</p>\n"


def test_plain_prose_stays_plain() -> None:
    text = "The ratio is 0.43 (layer 11): 1/sqrt(N) of it; see --data, up!"
    assert markdown_text(text) == text


def test_code_in_sentences() -> None:
    assert markdown_prose("run `a --b` now") == "run `a --b` now"
    assert MARKDOWN.renderInline(markdown_prose("odd ` mark")) == "odd ` mark"


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


# Every case in every format


@over_cases
def test_pages_are_whole_and_closed(case: str) -> None:
    text = to_html(CASES[case]())
    reader = Reader(text)
    assert len(set(reader.ids())) == len(reader.ids())
    targets = [a["href"] for name, a in reader.elements if name == "a"]
    assert all(href and href.startswith("#") and href[1:] in reader.ids() for href in targets)
    assert not {"img", "iframe", "link", "object", "embed", "form"} & {name for name, _ in reader.elements}
    assert not [a for _, a in reader.elements if "src" in a or any(key.startswith("on") for key in a)]
    assert len(text) < 1_500_000
    assert not re.search(r"\b(nan|inf|None)\b", reader.words, re.IGNORECASE) or case in (
        "hostile",
        "not finite",
    )


@over_cases
def test_the_policy_names_every_script_and_nothing_else(case: str) -> None:
    text = to_html(CASES[case]())
    policy = html_module.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    assert policy.startswith("default-src 'none';") and "http" not in policy
    assert re.findall(r"script-src ([^;]*)", policy)[0].count("sha256-") == text.count("<script>")


@over_cases
def test_headings_step_down_by_one(case: str) -> None:
    levels = [int(n[1]) for n, _ in Reader(to_html(CASES[case]())).elements if re.fullmatch("h[1-6]", n)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))


@over_cases
def test_every_chart_has_data_words_and_a_table(case: str) -> None:
    text = to_html(CASES[case]())
    reader = Reader(text)
    drawn = [a["data-chart"] for _, a in reader.elements if "data-chart" in a]
    if not drawn:
        assert case == "bare" and 'id="charts"' not in text
        return
    data = json.loads(re.findall(r'id="charts">(.*?)</script>', text)[0])
    assert sorted(data) == sorted(key for key in drawn if key)
    assert [n for n, _ in reader.elements].count("figure") == len(drawn)
    for figure in text.split("<figure ")[1:]:
        figure = figure.split("</figure>")[0]
        assert '<p class="sr">' in figure and "<table>" in figure


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


def test_findings_bring_evidence_threshold_source_and_remedy() -> None:
    made = CASES["collapsed"]()
    assert made.verdict is not None
    words, text = Reader(to_html(made)).words, to_markdown(made)
    for finding in made.verdict.findings:
        evidence = finding.evidence.replace("`", "")
        assert evidence in words and evidence in Reader(MARKDOWN.render(text)).words
        assert finding.source in words and finding.remedy.split("`")[0].strip() in words
    assert words.index("Collapsed") < words.rindex("Activations by depth")
    assert "measured 0.220, threshold 0.500 (calibration on 72 merges; Jordan et al. 2023)" in words


def test_what_is_missing_is_said() -> None:
    words = Reader(to_html(CASES["weights only"]())).words
    for part in ("activations and predictions", "O-information", "tasks"):
        assert f"Not measured: {part}." in words
    assert "Activations by depth" not in words and "Activations were not asked for" in words
    assert "no language-model head" in Reader(to_html(CASES["encoder"]())).words
    assert (
        "NaN or Inf in the merge: model.layers.4.mlp.down_proj.weight"
        in Reader(to_html(CASES["not finite"]())).words
    )


def test_undefined_values_leave_gaps() -> None:
    profile = next(c for c in charts.activation_profiles(CASES["not finite"]()) if c.key == "variance_ratio")
    merge = profile.panels[0].series[0]
    assert [v is None for v in merge.values] == [False] * 4 + [True] * 8
    assert profile.panels[0].bands[0].low[11] is not None


def test_profiles_hold_the_measured_ratios() -> None:
    made = evaluation(layers=5, parents=3, damage=0.5)
    assert made.activations is not None
    profile = charts.activation_profiles(made)[0]
    measured_ = [s.variance_ratio for s in made.activations.sites if s.site == "mlp"]
    panel = next(p for p in profile.panels if p.title == "MLP output")
    assert list(panel.series[0].values) == [e.value for e in measured_ if e]
    assert all(
        low is not None and high is not None and low <= 1 <= high
        for low, high in zip(panel.bands[0].low, panel.bands[0].high, strict=True)
    )


def test_nets_without_layers_keep_the_order_of_their_modules() -> None:
    made = evaluation(layers=3)
    assert made.activations is not None
    sites = tuple(s.model_copy(update={"layer": None}) for s in made.activations.sites if s.site == "mlp")
    made = made.model_copy(update={"activations": made.activations.model_copy(update={"sites": sites})})
    profile = charts.activation_profiles(made)[0]
    assert profile.depth == "module" and profile.positions == tuple(f"model.layers.{n}.mlp" for n in range(3))
    assert "model.layers.1.mlp" in to_html(made)


def test_many_kinds_of_tensor_fold_into_few_rows() -> None:
    made = CASES["weights only"]()
    assert made.weights is not None
    tensors = tuple(
        TensorWeights(
            name=f"l.{n}.experts.{e}.w{k}",
            layer=n,
            kind=f"experts.{e}.w{k}",
            shape=(2, 2),
            norm_ratio=1.0 + e,
        )
        for n in range(2)
        for e in range(64)
        for k in range(3)
    )
    made = made.model_copy(update={"weights": made.weights.model_copy(update={"tensors": tensors})})
    heat = charts.weight_heats(made)[0]
    assert heat.rows == ("experts.*.w*",) and heat.values[0] == (32.5, 32.5)


def test_a_page_of_a_large_model_is_made_quickly() -> None:
    import time

    start = time.process_time()
    to_html(CASES["deep"]())
    assert time.process_time() - start < 3


# Comparison and inspection


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


def test_an_inspection_as_tables() -> None:
    parents = models_of("x", 2, True, (NASTY[2], "b"))[1:]
    made = Inspection(
        models=parents,
        compatible=False,
        problems=(f"tensor `{NASTY[1]}` has other shapes",),
        cosine=((1.0, None), (None, 1.0)),
        delta_norms=(0.02, None),
        sign_conflict=0.4,
        curvature=1e-4,
        advice=(("linear", "the parents are `near`"),),
    )
    reader = Reader(MARKDOWN.render(inspection_markdown(made)))
    assert "Not compatible" in reader.words and "What fits" in reader.words
    assert {"script", "img", "a"}.isdisjoint(name for name, _ in reader.elements)
    alone = Inspection(models=parents, compatible=True)
    assert "They can be merged as they are" in to_markdown(alone)


# What is included, and what is documented


def test_vendored_libraries_are_what_they_say() -> None:
    for entry in json.loads((ASSETS / "vendored.json").read_text()):
        data = (ASSETS / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert entry["version"] in (ASSETS / "LICENSES.txt").read_text()
        assert b"\r" not in data and b"</script" not in data.lower() and b"<!--" not in data
    assert "-->" not in (ASSETS / "LICENSES.txt").read_text()


def test_the_documented_schema_is_the_schema() -> None:
    """``python -m merge_models.evals.report.reference docs`` writes both again."""
    assert json.loads((DOCS / "report.schema.json").read_text()) == Evaluation.model_json_schema()
    assert (DOCS / "report.md").read_text() == reference()


@over_cases
def test_reports_come_back_from_json(case: str) -> None:
    made = CASES[case]()
    assert Evaluation.from_json(made.to_json()) == made
