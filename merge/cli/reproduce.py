"""The command ``reproduce``."""

from __future__ import annotations

from pathlib import Path

import click

from merge_models.merge.cli.results import conclude
from merge_models.merge.errors import counted, printable


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Where to merge [default: temporary folder]."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
def reproduce(out: Path, scratch: Path | None, threads: int | None) -> None:
    """Run a merge again from its manifest and compare the bytes; exits 1 where they differ.

    \b
    Example: merge-models reproduce OUT
    """
    from merge_models.merge.api.reproduce import reproduce as run_again

    made = run_again(out, scratch=scratch, threads=threads)
    for line in made.other_versions:
        click.echo(printable(f"note: made with {line}", 2000))
    conclude(
        made.differences, f"{out}: {counted(made.tensors, 'tensor')} and all other files came out the same"
    )
