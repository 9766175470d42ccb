"""What strategies there are, told from their classes."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.recipes.accepted import ignored_by
from merge_models.merge.strategies import STRATEGIES, AbstractStrategy
from merge_models.merge.strategies.registry import find_strategy, offered_strategies

NARROW = 100
"""Columns below which a table of five columns leaves too little for the last one."""


def describe_all(as_json: bool = False, width: int = 0) -> str:
    """Returns the table of strategies: name, carrier, base model, models, what it does.

    Args:
        as_json: as JSON instead.
        width: columns of the terminal; 0 where lines may be of any length.
    """
    offered, problems = offered_strategies()
    strategies = [*STRATEGIES, *offered]
    if as_json:
        return json.dumps([_document(strategy) for strategy in strategies], indent=2)
    head = ("method", "carrier", "base", "models", "what it does")
    rows = [head, *map(_row, strategies)]
    lines = _listed(rows[1:], width) if 0 < width < NARROW else _table(rows, width)
    hint = _wrapped("merge-models methods NAME tells a method's parameters.", width)
    wrong = [line for problem in problems for line in _wrapped(problem, width)]
    return "\n".join([*lines, "", *wrong, *hint])


def _row(strategy: type[AbstractStrategy]) -> tuple[str, ...]:
    name = ", ".join((strategy.name, *strategy.aliases))
    return name, strategy.carrier, strategy.base_model.value, models_text(strategy), summary(strategy)


def _table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A line a row, the last column wrapped within the width."""
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        start = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines += _wrapped(row[4], width, start + "  ", " " * (len(start) + 2))
    return lines


def _listed(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Two lines or more a row, for narrow terminals."""
    lines = []
    for name, carrier, base, models, what in rows:
        facts = f" ({carrier}; base {base}; {models} model{'' if models == '1' else 's'})"
        lines += _wrapped(name + facts, width, "", "    ") + _wrapped(what, width, "    ", "    ")
    return lines


def describe(name: str, as_json: bool = False, width: int = 0) -> str:
    """Returns one strategy: what it does, and its parameters with types, defaults and ranges.

    Args:
        name: of the strategy, or an alias.
        as_json: as JSON instead.
        width: columns of the terminal; 0 where lines may be of any length.

    Raises:
        RecipeError: there is no such strategy.
    """
    strategy = find_strategy(name)
    if as_json:
        return json.dumps(_document(strategy), indent=2)
    parts = [[strategy.name]]
    paragraphs = _plain(inspect.getdoc(strategy) or "").split("\n\n")
    parts += [_wrapped(paragraph, width or NARROW) for paragraph in paragraphs]
    facts = [f"base model: {strategy.base_model.value}; models: {models_text(strategy)}", "parameters:"]
    for parameter in parameters_of(strategy).values():
        scope = " per model" if parameter.per_model else ""
        told = (
            f"{parameter.name} ({parameter.kind.__name__}{scope}, default {parameter.default},"
            f" {parameter.range_text()}): {parameter.doc}"
        )
        facts += _wrapped(told, width, "  ", "      ")
    facts += _wrapped(
        "Other parameters of mergekit's methods are accepted in recipes, without effect.", width
    )
    return "\n\n".join("\n".join(lines) for lines in [*parts, facts])


def _plain(docstring: str) -> str:
    """A docstring as it is read on a terminal: code in plain quotes."""
    return docstring.replace("``", "'")


def summary(strategy: type[AbstractStrategy]) -> str:
    """Returns the docstring's first sentence, on one line."""
    paragraph = " ".join(_plain(inspect.getdoc(strategy) or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    line = " ".join(text.split())
    if not width:
        return [first + line]
    return textwrap.wrap(
        line,
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
        break_long_words=False,
    )


def models_text(strategy: type[AbstractStrategy]) -> str:
    """Returns how many parents it takes, in words."""
    low, high = strategy.parents
    if low == high:
        return str(low)
    return f"{low} or more" if high is None else f"{low} to {high}"


def _document(strategy: type[AbstractStrategy]) -> dict[str, Any]:
    return {
        "name": strategy.name,
        "aliases": list(strategy.aliases),
        "summary": summary(strategy),
        "carrier": strategy.carrier,
        "base_model": strategy.base_model.value,
        "models": list(strategy.parents),
        "source": strategy.source,
        "parameters": [
            {
                "name": p.name,
                "type": p.kind.__name__,
                "default": p.default,
                "range": p.range_text(),
                "per_model": p.per_model,
                "doc": p.doc,
            }
            for p in parameters_of(strategy).values()
        ],
        "ignored": ignored_by(strategy),
    }
