"""The command ``methods``."""

from __future__ import annotations

import shutil

import click


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print all there is to tell, as Markdown.")
def methods(name: str | None, as_json: bool, as_markdown: bool) -> None:
    """List the strategies, or one strategy's parameters.

    \b
    Example: merge-models methods task_arithmetic
    """
    from merge_models.merge.api.methods import describe, describe_all
    from merge_models.merge.api.methods_page import methods_page

    if as_markdown:
        if name or as_json:
            raise click.UsageError("--markdown goes with neither a name nor --json")
        click.echo(methods_page(), nl=False)
        return
    width = shutil.get_terminal_size((0, 0)).columns  # lines of any length where no terminal is
    click.echo(describe(name, as_json, width) if name else describe_all(as_json, width))
