"""HTML by construction: whatever is not ``Html`` already is escaped, so nothing can be forgotten."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence

from merge_models.evals.report.escape import block, line, split_code

VOID = {"meta", "br", "col", "hr"}


class Html(str):
    """Markup that is safe as it stands."""


def flatten(content: object) -> str:
    """Returns children as markup: ``Html`` as it is, other text escaped, sequences joined, None nothing."""
    if content is None:
        return ""
    if isinstance(content, Html):
        return str(content)
    if isinstance(content, str):
        return html.escape(block(content))
    if isinstance(content, Iterable):
        return "".join(flatten(child) for child in content)
    return html.escape(str(content))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Returns an element. Attributes lose a last ``_`` (``class_``) and take ``-`` for ``_``
    (``aria_label``)."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{flatten(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {key}" if value is True else f' {key}="{html.escape(line(str(value), 2000))}"'


def prose(text: str) -> Html:
    """Returns a sentence of ours that may hold `code` and names from the input."""
    return Html("".join(flatten(tag("code", p) if code else p) for code, p in split_code(text)))


def name(text: str) -> Html:
    """Returns a model's, tensor's or task's name, isolated from the direction of the text around it."""
    return tag("bdi", line(text) or "?", class_="name")


def table(
    caption: object,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    words: Sequence[int] = (),
    label: str,
) -> Html:
    """Returns a table that scrolls by itself when it is wider than the page.

    Args:
        caption: what it shows; None where a heading beside it says so.
        head: column headings; the first column holds the row headings.
        rows: cells.
        words: columns of text; the others are numbers and are aligned to the right.
        label: the scrolling region's name for screen readers.
    """

    def kind(column: int) -> str | None:
        return None if column == 0 or column in words else "n"

    header = tag("tr", [tag("th", h, scope="col", class_=kind(i)) for i, h in enumerate(head)])
    body = [
        tag(
            "tr",
            [
                tag("th", cell, scope="row") if i == 0 else tag("td", cell, class_=kind(i))
                for i, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    inner = tag(
        "table", tag("caption", caption) if caption else None, tag("thead", header), tag("tbody", body)
    )
    return tag("div", inner, class_="scroll", role="region", tabindex="0", aria_label=f"Table: {label}")


def details(summary: object, *children: object, **attributes: object) -> Html:
    """Returns something to open."""
    return tag("details", tag("summary", summary), children, **attributes)


def json_script(identifier: str, data: object) -> Html:
    """Returns data for scripts. ``<``, ``>`` and ``&`` are escaped, so that no text in it can end the
    element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for c in "<>&":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return Html(f'<script type="application/json" id="{identifier}">{text}</script>')
