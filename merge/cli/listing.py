"""The command ``methods``."""

from __future__ import annotations

import shutil

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the strategies, or one strategy's parameters.

    \b
    Example: merge-models methods task_arithmetic
    """
    from merge_models.merge.methods import describe, describe_all

    width = shutil.get_terminal_size((0, 0)).columns  # lines of any length where no terminal is
    click.echo(describe(name, as_json, width) if name else describe_all(as_json, width))
