"""Text from inputs on its way to people: names, settings and messages that may have been made to deceive.

``printable`` is for terminals and one-line messages, ``code_span`` and ``fenced`` for Markdown, ``html`` for
reports. Control characters (ANSI sequences begin with one), invisible ones and those that turn the
direction of writing are shown as escapes everywhere.
"""

from __future__ import annotations

import html as _html

from merge_models.merge.errors import printable as printable


def visible(text: str) -> str:
    """Returns text of several lines with every character that cannot be seen, but for line ends, as an
    escape."""
    return "\n".join(printable(line, len(line)) for line in text.split("\n"))


def code_span(text: str, limit: int = 120) -> str:
    """Returns text for between two backticks in Markdown, where nothing else is read as markup."""
    return printable(text, limit).replace("`", "'")


def fenced(text: str) -> str:
    """Returns text for between two lines of three backticks in Markdown."""
    return visible(text).replace("```", "'''")


def html(text: str, limit: int = 120) -> str:
    """Returns text for HTML, between tags or in a quoted attribute."""
    return _html.escape(printable(text, limit), quote=True)
