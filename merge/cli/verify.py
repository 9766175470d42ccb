"""The command ``verify``."""

from __future__ import annotations

from pathlib import Path

import click

from merge_models.merge.cli.results import conclude
from merge_models.merge.errors import counted
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

    verification = compare(out, inputs=inputs, threads=threads or default_threads())
    conclude(
        verification.problems,
        f"{out}: {counted(verification.tensors, 'tensor')} and {counted(verification.files, 'file')} are as"
        f" they were written{' and read' if inputs else ''} ({shown_size(verification.bytes)})",
    )
