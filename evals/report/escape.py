"""Text that comes from checkpoints, data and models, made safe to show in Markdown and HTML.

What cannot be seen is shown as an escape (``merge.checkpoint.text``); here are the spaces and joiners that
languages need, the bounds, and what Markdown would read as markup.
"""

from __future__ import annotations

import re
import unicodedata

from merge_models.merge.checkpoint.text import code_span, visible

LINE_LIMIT = 200
PROSE_LIMIT = 4000

_JOINERS = re.compile("([\u200c\u200d])")  # spelling in Persian, Indic scripts and emoji; they hide nothing
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.|@)", re.IGNORECASE)
_LEADING = re.compile(r"^([-+#=]|\d+(?=[.)]))")


def block(text: str, limit: int = PROSE_LIMIT) -> str:
    """Returns text of several lines: any space as a plain one, what cannot be seen as an escape, bounded."""
    kept = text[:limit].replace("\r\n", "\n").replace("\t", "    ")
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in kept)
    shown = "".join(p if _JOINERS.match(p) else visible(p) for p in _JOINERS.split(spaced))
    return shown if len(text) <= limit else shown + "…"


def line(text: str, limit: int = LINE_LIMIT) -> str:
    """Returns the text on one line, runs of white space as one space, as ``block`` shows it."""
    return " ".join(block(text, limit).split())


def markdown_text(text: str, limit: int = PROSE_LIMIT) -> str:
    """Returns one line of Markdown that shows the text as it is: no markup, link, mention, HTML or table
    cell."""
    shown = _MARKUP.sub(_escape, line(text, limit))
    return _LEADING.sub(_escape_leading, shown)


def _escape(match: re.Match[str]) -> str:
    return "&#64;" if match[1] == "@" else f"\\{match[1]}"


def _escape_leading(match: re.Match[str]) -> str:
    """What would begin a heading or an item of a list."""
    return f"\\{match[1]}" if not match[1].isdigit() else f"&#{ord(match[1][0])};{match[1][1:]}"


def markdown_code(text: str, limit: int = LINE_LIMIT) -> str:
    """Returns a name as a code span, also inside a table's cell."""
    return f"`{code_span(line(text, limit), 2 * limit).replace('|', '¦') or '?'}`"


def split_code(text: str, limit: int = PROSE_LIMIT) -> list[tuple[bool, str]]:
    """Returns a sentence of ours with `code` in it as (is code, piece); unbalanced marks are plain
    characters."""
    pieces = line(text, limit).split("`")
    if len(pieces) % 2 == 0:
        return [(False, "`".join(pieces))]
    return [(odd % 2 == 1, piece) for odd, piece in enumerate(pieces) if piece]


def markdown_prose(text: str, limit: int = PROSE_LIMIT) -> str:
    """Returns ``markdown_text`` that keeps `code` spans."""
    return "".join(
        markdown_code(piece, limit) if code else _keep_edges(piece) for code, piece in split_code(text, limit)
    )


def _keep_edges(piece: str) -> str:
    """Spaces at the edges of a piece separate it from the code beside it."""
    before = " " if piece[:1] == " " else ""
    after = " " if piece[-1:] == " " and piece.strip() else ""
    return before + markdown_text(piece) + after
