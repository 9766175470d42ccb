"""The report's page in a real browser: it opens from a disk, is silent, asks for nothing and draws."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_models.evals.report import to_html
from merge_models.evals.report.comparison import compare
from tests.evals.report.browser import Browser, browser, find_chromium
from tests.evals.report.cases import CASES

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
PAGES = (*CASES, "comparison")
over_pages = pytest.mark.parametrize("page", PAGES)

# Expressions over the page: labels that overlap, elements that stick out to the right, empty charts.
OVERLAPS = """[...document.querySelectorAll('.chart svg[role=img]')].flatMap(svg => {
  const labels = [...svg.querySelectorAll('[data-mark$="tick label"] text')];
  const boxes = labels.map(label => label.getBoundingClientRect());
  const across = (a, b) => a.left < b.right - 1 && b.left < a.right - 1;
  const down = (a, b) => a.top < b.bottom - 3 && b.top < a.bottom - 3;
  const hits = (a, i) => boxes.slice(i + 1).filter(b => across(a, b) && down(a, b));
  return boxes.flatMap((a, i) => hits(a, i).map(() => svg.getAttribute('aria-label')));
})"""
BEYOND = """[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll, nav, .sr, .skip, #tip, details:not([open]), svg[role=img]')) return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 80))"""
EMPTY = """[...document.querySelectorAll('.chart')].filter(chart => {
  const drawn = [...chart.querySelectorAll('svg[role=img]')];
  return !drawn.length || drawn.some(svg => svg.querySelectorAll('path, rect, circle').length < 2);
}).length"""
UNDEFINED = """[document.body.innerText, ...[...document.querySelectorAll('svg')].map(s => s.outerHTML)]
  .filter(text => /NaN|undefined|Infinity/.test(text)).length"""


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    pages = {name: to_html(make()) for name, make in CASES.items()}
    pages["comparison"] = compare([make() for make in CASES.values()]).to_html()
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in pages}


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with browser(CHROMIUM) as opened:
        yield opened


@pytest.fixture(autouse=True)
def desktop(chrome: Browser) -> None:
    chrome.size(1280, 900)
    chrome.media()


@over_pages
def test_a_page_opens_silently_draws_and_asks_for_nothing(
    chrome: Browser, urls: dict[str, str], page: str
) -> None:
    chrome.open(urls[page])
    assert chrome.console == []
    assert chrome.requests == [urls[page]]
    charts = chrome.run("document.querySelectorAll('.chart').length")
    assert chrome.run("document.documentElement.dataset.drawn") == str(charts)
    assert charts >= 2 or page == "bare"
    assert chrome.run(EMPTY) == 0
    assert page in ("hostile", "not finite", "comparison") or chrome.run(UNDEFINED) == 0
    assert chrome.run("window.broken === undefined")
    assert chrome.run(OVERLAPS) == []


@over_pages
def test_a_phone_needs_no_horizontal_scrolling(chrome: Browser, urls: dict[str, str], page: str) -> None:
    chrome.size(375, 800, mobile=True)
    chrome.open(urls[page])
    assert chrome.console == []
    assert chrome.run("document.documentElement.scrollWidth") <= 375
    assert chrome.run(BEYOND) == []
    assert chrome.run(OVERLAPS) == []


def test_a_narrower_window_redraws_the_charts(chrome: Browser, urls: dict[str, str]) -> None:
    width = "document.querySelector('.chart svg[role=img]').viewBox.baseVal.width"
    chrome.open(urls["healthy"])
    before = chrome.run(width)
    chrome.size(500, 900)
    chrome.settle()
    assert chrome.run(width) != before
    assert chrome.run("document.documentElement.scrollWidth") <= 500


def _middle(chrome: Browser, selector: str) -> tuple[float, float]:
    chrome.run(
        f"document.querySelector('{selector}').scrollIntoView({{block: 'center', behavior: 'instant'}})"
    )
    chrome.settle()
    box = chrome.run(
        f"(r => [r.x, r.y, r.width, r.height])(document.querySelector('{selector}').getBoundingClientRect())"
    )
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _tip(chrome: Browser) -> str | None:
    return chrome.run("(t => t.hidden ? null : t.innerText)(document.getElementById('tip'))")


def test_values_show_under_the_pointer(chrome: Browser, urls: dict[str, str]) -> None:
    made = CASES["collapsed"]()
    assert made.activations is not None and made.weights is not None
    chrome.open(urls["collapsed"])
    chrome.point(*_middle(chrome, "#figure-variance_ratio svg[role=img]"))
    told = _tip(chrome)
    assert told is not None
    layer = int(re.findall(r"layer (\d+)", told)[0])
    site = next(s for s in made.activations.sites if s.layer == layer and s.site == "residual")
    assert site.variance_ratio is not None and f"{site.variance_ratio.value:.3f}" in told
    assert "soup of strangers" in told and "parents" in told and "smollm-base" in told
    chrome.point(5, 5)
    assert _tip(chrome) is None
    chrome.point(*_middle(chrome, "#figure-weight_delta_norm_ratio svg[role=img]"))
    told = _tip(chrome)
    assert told is not None
    layer, kind = re.findall(r"layer (\d+)\n(\S+)", told)[0]
    tensor = next(t for t in made.weights.tensors if t.name == f"model.layers.{layer}.{kind}.weight")
    assert f"{tensor.delta_norm_ratio:.3f}" in told
    chrome.point(*_middle(chrome, "#figure-kl svg[role=img]"))
    assert "KL(model || merge), nats" in (_tip(chrome) or "")


@pytest.mark.parametrize("figure", ["variance_ratio", "weight_delta_norm_ratio", "kl"])
def test_keys_read_the_values(chrome: Browser, urls: dict[str, str], figure: str) -> None:
    chrome.open(urls["collapsed"])
    _middle(chrome, f"#figure-{figure} svg[role=img]")
    chrome.run(f"document.querySelector('#figure-{figure} svg[role=img]').focus({{preventScroll: true}})")
    chrome.key("ArrowRight")
    first = _tip(chrome)
    chrome.key("ArrowRight")
    second = _tip(chrome)
    assert first and second and first != second
    if figure != "kl":
        assert first.startswith("layer 0") and second.startswith("layer 1")
    chrome.key("Escape")
    assert _tip(chrome) is None


def test_dark_and_light(chrome: Browser, urls: dict[str, str]) -> None:
    def colours() -> list[str]:
        bar = "getComputedStyle(document.querySelector('#figure-weight_norm_ratio rect')).fill"
        return [chrome.run("getComputedStyle(document.body).backgroundColor"), chrome.run(bar)]

    chrome.open(urls["healthy"])
    light = colours()
    chrome.media(scheme="dark")
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)" and dark[0] != light[0] and dark[1] != light[1]
    label = "document.getElementById('theme').textContent"
    chrome.run("document.getElementById('theme').click()")
    assert colours() == light and chrome.run(label) == "Theme: light"
    chrome.media(scheme="light")
    chrome.run("document.getElementById('theme').click()")
    assert colours() == dark and chrome.run(label) == "Theme: dark"
    chrome.media(scheme="light", kind="print")
    assert colours() == light


@pytest.mark.parametrize("page", ["healthy", "comparison"])
def test_it_prints(chrome: Browser, urls: dict[str, str], page: str) -> None:
    chrome.open(urls[page])
    pdf = chrome.pdf()
    assert pdf.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 20
    assert chrome.console == []
    chrome.settle()
    assert chrome.run("document.querySelector('.chart svg[role=img]').viewBox.baseVal.width") > 300


def test_the_page_may_not_ask(chrome: Browser, urls: dict[str, str]) -> None:
    chrome.open(urls["healthy"])
    assert chrome.run("fetch('data:,x').then(() => 'asked', () => 'refused')") == "refused"
    add = "s => { s.textContent = 'window.broken = 1'; document.body.append(s); }"
    chrome.run(f"({add})(document.createElement('script'))")
    assert chrome.run("window.broken === undefined")


def test_tables_stand_in_for_charts_without_scripts(chrome: Browser, urls: dict[str, str]) -> None:
    chrome.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chrome.send("Page.navigate", url=urls["healthy"])
        while "Page.loadEventFired" not in chrome.events:
            chrome.send("Page.getLayoutMetrics")
    finally:
        chrome.send("Emulation.setScriptExecutionDisabled", value=False)
    assert chrome.run("document.querySelectorAll('.chart svg').length") == 0
    assert chrome.run("document.querySelectorAll('figure table tbody tr').length") > 100


def test_pages_open_in_reasonable_time(chrome: Browser, urls: dict[str, str]) -> None:
    """A hundred layers must not make a reader wait: scripts of the largest page take under two seconds."""
    chrome.open(urls["deep"])
    assert Path(urls["deep"].removeprefix("file://").replace("%20", " ")).stat().st_size < 1_500_000
    spent = chrome.run("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert spent < 2000 * 4  # wall time on a shared machine
