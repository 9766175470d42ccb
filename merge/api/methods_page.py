"""The page ``docs/methods.md``: every strategy, told from its class, as Markdown."""

from __future__ import annotations

import inspect
import textwrap

from merge_models.merge.api.methods import NARROW, models_text, summary
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.recipes.mergekit import PARAMETERS
from merge_models.merge.strategies import STRATEGIES, AbstractStrategy

_HEAD = """\
# Methods

Every strategy, by its name in recipes and after `-m`. `merge-models methods --markdown` writes this page
from the code; `merge-models methods NAME` tells the same on a terminal. *base*: whether it measures
parents against a base model. *models*: how many parents it takes. Parameters marked *each* may differ
from model to model; all may differ from tensor to tensor ([recipes](recipes.md)).

Recipes may give every method all parameters of mergekit's methods:
{}.
Those that a method does not have change nothing, as in mergekit, and the plan says so.
"""


def methods_page() -> str:
    """Returns the page, as Markdown."""
    rows = ["| method | carrier | base | models | what it does |", "|---|---|---|---|---|"]
    rows += [_row(strategy) for strategy in STRATEGIES]
    names = textwrap.fill(", ".join(f"`{name}`" for name in sorted(PARAMETERS)), NARROW)
    head = _HEAD.rstrip().format(names)
    return "\n\n".join([head, "\n".join(rows), *map(_section, STRATEGIES)]) + "\n"


def _row(strategy: type[AbstractStrategy]) -> str:
    names = ", ".join(f"[`{strategy.name}`](#{strategy.name})" if n == 0 else f"`{name}`"
                      for n, name in enumerate((strategy.name, *strategy.aliases)))  # fmt: skip
    cells = (
        names,
        strategy.carrier,
        strategy.base_model.value,
        models_text(strategy),
        _cell(summary(strategy)),
    )
    return f"| {' | '.join(cells)} |"


def _section(strategy: type[AbstractStrategy]) -> str:
    text = (inspect.getdoc(strategy) or "").replace("``", "`")
    parts = [f"## {strategy.name}", text]
    if parameters_of(strategy):
        parts.append(
            "\n".join(
                ["| parameter | default | values | what it is |", "|---|---|---|---|", *_rows(strategy)]
            )
        )
    return "\n\n".join(parts)


def _rows(strategy: type[AbstractStrategy]) -> list[str]:
    rows = []
    for parameter in parameters_of(strategy).values():
        each = ", *each*" if parameter.per_model else ""
        default = "" if parameter.default is None else f"`{str(parameter.default).lower()}`"
        cells = (f"`{parameter.name}`{each}", default, parameter.range_text(), parameter.doc)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return rows


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")
