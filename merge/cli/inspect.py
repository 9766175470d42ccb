"""The command ``inspect``."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import click

from merge_models.merge.cli.options import allow_pickle_option
from merge_models.merge.cli.verdicts import FAILED


@click.command("inspect")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", help="The model that they were tuned from.")
@click.option("--headers-only", is_flag=True, help="Compatible or not, from headers alone: in a second.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
@allow_pickle_option
def inspect_command(
    models: tuple[str, ...], base: str | None, headers_only: bool, as_json: bool, **options: Any
) -> None:
    """Before a merge: how far apart are MODELS, and which strategies fit them.

    \b
    Example: merge-models inspect ./math ./code --base ./base
    """
    from merge_models.evals.inspect import inspect_parents
    from merge_models.evals.report import to_text

    inspection = inspect_parents(models, base, headers_only=headers_only, **options)
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    click.echo(inspection.to_json() if as_json else to_text(inspection, width))
    if not inspection.compatible:
        sys.exit(FAILED)
