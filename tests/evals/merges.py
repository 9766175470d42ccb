"""Merges of the demo's experts, and what little of a text they are measured on."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner

from merge_models.merge.cli import main
from merge_models.merge.demo.skills import SKILLS, demo_folder
from merge_models.merge.recipes.recipe import Recipe, parse_recipe

EXPERTS = [demo_folder(name) for name in SKILLS]


BASE = demo_folder("base")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


ONE, TWO = "sorting", "reversing"


BOTH: dict[str, float | None] = {ONE: None, TWO: None}


def _recipe(
    method: str, base: str | None, models: dict[str, float | None], parameters: dict[str, Any]
) -> Recipe:
    """A recipe of the demo's models, each with its weight, if any."""
    entries = [
        {"model": str(demo_folder(name)), "parameters": {} if weight is None else {"weight": weight}}
        for name, weight in models.items()
    ]
    place = None if base is None else str(demo_folder(base))
    return parse_recipe(
        {"merge_method": method, "base_model": place, "models": entries, "parameters": parameters}
    )
