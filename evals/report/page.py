"""One self-contained page: charts, data and libraries inside, no network, readable from a disk in years.

A Content-Security-Policy in the page forbids every request and every script but the three whose digests
it names; text from the input is escaped where it is placed (``html.py``).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

from merge_models.evals.report.escape import line
from merge_models.evals.report.html import Html, json_script, tag
from merge_models.evals.report.sections import Section, sections, verdict
from merge_models.evals.report.shapes import Chart, payload
from merge_models.evals.schema import Evaluation

SCRIPTS = ("d3.min.js", "plot.umd.min.js", "report.js")


def page(evaluation: Evaluation) -> str:
    """Returns the report as HTML: verdict first, then whatever was measured, then how."""
    parts = sections(evaluation)
    status = f"{evaluation.verdict.status}: " if evaluation.verdict else ""
    return document(f"{status}{line(evaluation.merge.name)}", verdict(evaluation), parts)


def document(title: str, opening: Html, parts: Sequence[Section]) -> str:
    """Returns a whole document of an opening and sections."""
    drawn = [chart for part in parts for chart in part.charts]
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#main", class_="skip"),
        _header(parts),
        tag("main", opening, [_section(part) for part in parts], id="main"),
        tag(
            "footer",
            tag(
                "p",
                "Made by merge-models. Charts: Observable Plot and D3 (ISC licence), included in this file.",
            ),
        ),
        tag("div", id="tip", role="status", aria_live="polite", hidden=True),
        json_script("charts", {chart.key: payload(chart) for chart in drawn}) if drawn else None,
        [_script(text) for text in _needed(drawn)],
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(_needed(drawn))}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} (merge report)"),
        Html(f"<style>{_asset('report.css')}</style>"),
        Html(f"<!--\n{_asset('LICENSES.txt')}-->") if drawn else None,
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _header(parts: Iterable[Section]) -> Html:
    links = [tag("li", tag("a", part.heading, href=f"#{part.key}")) for part in parts]
    theme = tag("button", "Theme: auto", type="button", id="theme", hidden=True)
    return tag(
        "header",
        tag("nav", tag("ul", tag("li", tag("a", "Verdict", href="#main")), links), aria_label="Sections"),
        theme,
    )


def _section(part: Section) -> Html:
    return tag(
        "section",
        tag("h2", part.heading, id=f"{part.key}-heading"),
        part.body,
        id=part.key,
        class_="part",
        aria_labelledby=f"{part.key}-heading",
    )


def _needed(drawn: Sequence[Chart]) -> list[str]:
    """The scripts of the page: without a chart, only the page's own."""
    return [_asset(file) for file in (SCRIPTS if drawn else SCRIPTS[-1:])]


@cache
def _asset(file: str) -> str:
    folder = resources.files("merge_models.evals.report") / "assets"
    return (folder / file).read_text(encoding="utf-8")


def _script(text: str) -> Html:
    return Html(f"<script>{text}</script>")


def _policy(scripts: Iterable[str]) -> str:
    """Nothing is fetched; only these scripts run. Styles are inline because charts set them."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    closed = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'"
    return f"{closed}; script-src {digests}"
