"""The command ``methods``."""

from __future__ import annotations

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

    click.echo(describe(name, as_json) if name else describe_all(as_json))
