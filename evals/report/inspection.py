"""Parents before a merge: what is told of them, as Markdown for a card and as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from merge_models.evals.report.escape import line, markdown_code, markdown_prose
from merge_models.evals.report.markdown import MOST_LAYERS, table
from merge_models.evals.report.numbers import number, percent
from merge_models.evals.schema import DepthWeights, Inspection, ModelRef


@dataclass(frozen=True)
class _Name:
    """A model's name in a table."""

    text: str


_Cell = str | _Name


@dataclass(frozen=True)
class _Section:
    """What stands under one title, in this order.

    Attributes:
        sentences: a line each; ``remarks``: items of a list.
        rows: of a table, the head first; its first ``words`` columns are text, the others numbers.
        advice: strategies with their reasons, best first.
    """

    title: str
    sentences: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    rows: tuple[tuple[_Cell, ...], ...] = ()
    words: int = 1
    advice: tuple[tuple[str, str], ...] = ()


def inspection_markdown(inspection: Inspection) -> str:
    """Returns whether parents fit, what they are, how far apart they are, what fits them: as Markdown."""
    parts = []
    for level, section in enumerate(_sections(inspection)):
        parts.append(f"{'###' if level else '##'} {section.title}")
        if section.sentences:
            first, *others = map(markdown_prose, section.sentences)
            parts.append("\n".join([f"**{first}**" if not level else first, *others]))
        if section.remarks:
            parts.append("\n".join(f"- {markdown_prose(remark)}" for remark in section.remarks))
        if section.rows:
            head, *rows = _shown(section.rows, markdown_code)
            parts.append(table(head, rows, words=range(section.words)))
        if section.advice:
            listed = [f"{markdown_code(name)}: {markdown_prose(why)}" for name, why in section.advice]
            parts.append("\n".join(f"{n}. {item}" for n, item in enumerate(listed, start=1)))
    return "\n\n".join(parts) + "\n"


def inspection_text(inspection: Inspection, width: int = 100) -> str:
    """Returns the sections for a terminal of so many columns: no markup, tables by spaces, sentences
    wrapped."""
    parts = []
    for section in _sections(inspection):
        lines = [section.title]
        for sentence in section.sentences:
            lines += _wrapped(sentence, width, "  ", "  ")
        for remark in section.remarks:
            lines += _wrapped(remark, width, "  - ", "    ")
        lines += [""] if section.rows and len(lines) > 1 else []
        lines += [f"  {row}" for row in _aligned(_shown(section.rows, line), section.words)]
        for n, (method, why) in enumerate(section.advice, start=1):
            lines += _wrapped(f"{method}: {why}", width, f"  {n}. ", "     ")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _sections(inspection: Inspection) -> Iterator[_Section]:
    verdict = "✓ Compatible." if inspection.compatible else "✕ Not compatible."
    if inspection.compatible and not inspection.problems:
        verdict += " They can be merged as they are." if len(_parents(inspection)) > 1 else ""
    yield _Section("Parents", (verdict,), inspection.problems, _models(inspection), words=2)
    if inspection.cosine is not None and len(_parents(inspection)) > 1:
        yield _Section("How far apart", _distances(inspection), rows=_cosines(inspection))
    depth = _depth(inspection.depth or ())
    if depth:
        yield _Section("By depth", rows=depth)
    if inspection.advice:
        yield _Section("What fits", advice=inspection.advice)


def _parents(inspection: Inspection) -> list[ModelRef]:
    return [model for model in inspection.models if model.role != "base"]


def _models(inspection: Inspection) -> tuple[tuple[_Cell, ...], ...]:
    deltas = iter(inspection.delta_norms or ())
    rows: list[tuple[_Cell, ...]] = [("Model", "Role", "Parameters", "Delta norm over base")]
    for model in inspection.models:
        delta = number(next(deltas, None)) if model.role != "base" else number(None)
        rows.append((_Name(model.name), model.role, number(model.parameters), delta))
    return tuple(rows)


def _distances(inspection: Inspection) -> tuple[str, ...]:
    curvature = (
        f"Curvature {number(inspection.curvature)}: the gap between the plain mean's norm and the parents' "
        "mean norm (0 is flat)."
    )
    if inspection.sign_conflict is None:
        return (curvature,)
    return curvature, f"Sign conflict: {percent(inspection.sign_conflict)} of what several parents changed."


def _cosines(inspection: Inspection) -> tuple[tuple[_Cell, ...], ...]:
    parents = _parents(inspection)
    return (
        ("Cosine to", *(_Name(parent.name) for parent in parents)),
        *(
            (_Name(parent.name), *(number(value) for value in row))
            for parent, row in zip(parents, inspection.cosine or (), strict=False)
        ),
    )


def _depth(depth: Sequence[DepthWeights]) -> tuple[tuple[_Cell, ...], ...]:
    fields = {"sign_conflict": "Sign conflict", "subspace_overlap": "Subspace overlap"}
    layers = [d for d in depth if d.layer is not None]
    known = [field for field in fields if any(getattr(d, field) is not None for d in layers)]
    if not known:
        return ()
    step = max(1, -(-len(layers) // MOST_LAYERS))
    rows = [(str(d.layer), *(number(getattr(d, field)) for field in known)) for d in layers[::step]]
    return (("Layer", *(fields[field] for field in known)), *rows)


def _shown(rows: Sequence[Sequence[_Cell]], name: Callable[[str], str]) -> list[list[str]]:
    return [[name(cell.text) if isinstance(cell, _Name) else cell for cell in row] for row in rows]


def _aligned(rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Columns of one width each: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if n < words else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _wrapped(text: str, width: int, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        line(text, 4000), width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
    )
