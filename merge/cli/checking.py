"""The commands ``verify`` and ``reproduce``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from merge_models.merge.errors import counted, printable
from merge_models.merge.sizes import shown_size


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--inputs", is_flag=True, help="Also compare the inputs that were read.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
def verify(out: Path, inputs: bool, threads: int | None) -> None:
    """Compare every byte of a merge's output with its manifest; exits 1 where something has changed.

    \b
    Example: merge-models verify OUT --inputs
    """
    from merge_models.merge.checkpoint.threads import default_threads
    from merge_models.merge.publishing.verify import verify as compare

    found = compare(out, inputs=inputs, threads=threads or default_threads())
    _conclude(
        found.problems,
        f"{out}: {counted(found.tensors, 'tensor')} and {counted(found.files, 'file')} are as they"
        f" were written{' and read' if inputs else ''} ({shown_size(found.bytes)})",
    )


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
    _conclude(
        made.differences, f"{out}: {counted(made.tensors, 'tensor')} and all other files came out the same"
    )


def _conclude(problems: Sequence[str], verdict: str) -> None:
    """Prints what was found wrong and exits 1, or that nothing was."""
    for line in problems:
        click.echo(line)
    if problems:
        sys.exit(1)
    click.echo(printable(verdict, 2000))
