"""Nothing of the input is markup."""

from __future__ import annotations

import html as html_module
from typing import Any

import pytest

from merge_models.evals.report.escape import block, line, markdown_code, markdown_prose, markdown_text
from tests.evals.report.cases import NASTY
from tests.evals.report.reading import MARKDOWN, Reader


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
