"""Reports: every case in every format, nothing of the input as markup, nothing undefined as a number."""

from __future__ import annotations

import hashlib
import html as html_module
import json
import re

from merge_models.evals.report import to_html, to_markdown
from tests.evals.report.cases import CASES
from tests.evals.report.reading import MARKDOWN, Reader, over_cases
from tests.helpers import ROOT

ASSETS = ROOT / "evals" / "report" / "assets"


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


def test_a_page_of_a_large_model_is_made_quickly() -> None:
    import time

    start = time.process_time()
    to_html(CASES["deep"]())
    assert time.process_time() - start < 3


def test_vendored_libraries_are_what_they_say() -> None:
    for entry in json.loads((ASSETS / "vendored.json").read_text()):
        data = (ASSETS / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert entry["version"] in (ASSETS / "LICENSES.txt").read_text()
        assert b"\r" not in data and b"</script" not in data.lower() and b"<!--" not in data
    assert "-->" not in (ASSETS / "LICENSES.txt").read_text()
