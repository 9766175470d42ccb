"""What strategies there are, told from their classes."""

from __future__ import annotations

import inspect
import json
from typing import Any

from merge_models.merge.strategies import STRATEGIES, AbstractStrategy, find_strategy, parameters_of


def describe_all(as_json: bool = False) -> str:
    """The table of strategies: name, carrier, base model, models, source."""
    if as_json:
        return json.dumps([_document(strategy) for strategy in STRATEGIES], indent=2)
    rows = [("method", "carrier", "base", "models", "what it does")]
    for strategy in STRATEGIES:
        name = ", ".join((strategy.name, *strategy.aliases))
        what = inspect.getdoc(strategy) or ""
        rows.append(
            (
                name,
                strategy.carrier,
                strategy.base_model.value,
                _models(strategy),
                _first_line(what),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return "\n".join([*lines, "", "merge-models methods NAME tells a method's parameters."])


def describe(name: str, as_json: bool = False) -> str:
    """One strategy: its docstring, and its parameters with types, defaults and ranges.

    Raises:
        RecipeError: there is no such strategy.
    """
    strategy = find_strategy(name)
    if as_json:
        return json.dumps(_document(strategy), indent=2)
    lines = [f"{strategy.name}", "", inspect.getdoc(strategy) or "", ""]
    lines.append(f"base model: {strategy.base_model.value}; models: {_models(strategy)}")
    lines.append("parameters:")
    for parameter in parameters_of(strategy).values():
        scope = " per model" if parameter.per_model else ""
        lines.append(
            f"  {parameter.name} ({parameter.kind.__name__}{scope}, default {parameter.default},"
            f" {parameter.range_text()}): {parameter.doc}"
        )
    return "\n".join(lines)


def _first_line(text: str) -> str:
    """The docstring's first sentence, on one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def _models(strategy: type[AbstractStrategy]) -> str:
    low, high = strategy.parents
    if low == high:
        return str(low)
    return f"{low} or more" if high is None else f"{low} to {high}"


def _document(strategy: type[AbstractStrategy]) -> dict[str, Any]:
    return {
        "name": strategy.name,
        "aliases": list(strategy.aliases),
        "summary": _first_line(inspect.getdoc(strategy) or ""),
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
    }
