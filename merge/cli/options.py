"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PATH: Any = click.Path(path_type=Path)

allow_pickle_option = click.option(
    "--allow-pickle", is_flag=True, help="Read files of torch.save too (.bin, .pt); no code in them is run."
)
max_memory_option = click.option(
    "--max-memory", metavar="SIZE", help="Memory that the program may take, such as 2GB."
)


def write_options(command: Any) -> Any:
    """Where and how a merge is written."""
    options = [
        click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder."),
        click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands there."),
        click.option("--restart", is_flag=True, help="Begin anew; by default a stopped merge goes on."),
        click.option("--shard-size", default="5GB", show_default=True, help="Bytes per output file."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores]."),
        max_memory_option,
        click.option(
            "--on-nonfinite",
            type=click.Choice(["error", "keep"]),
            default="error",
            show_default=True,
            help="What a NaN or Inf in a parent does.",
        ),
        click.option(
            "--rounding",
            type=click.Choice(["nearest", "stochastic"]),
            help="To formats narrower than float32 [default: the recipe's, or nearest].",
        ),
        click.option(
            "--output-digests",
            type=click.Choice(["fast", "strong"]),
            default="strong",
            show_default=True,
            help="What the manifest tells output tensors by: XXH3, or BLAKE3 (slower, cannot be forged).",
        ),
        click.option(
            "--input-digests",
            type=click.Choice(["fast", "strong"]),
            default="fast",
            show_default=True,
            help="The same for inputs.",
        ),
        allow_pickle_option,
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Print the plan, and figures by tensor."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def measure_options(command: Any) -> Any:
    """What models are run on, and how."""
    options = [
        click.option(
            "--data", default="built-in", show_default=True, help="Calibration text: .jsonl or .txt."
        ),
        click.option("--tokens", type=click.IntRange(256), default=8192, show_default=True, help="Of it."),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of samples, bootstraps."
        ),
        click.option("--device", help="Where models run [default: cpu]."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores]."),
        allow_pickle_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def fail_on_option(command: Any) -> Any:
    """``--fail-on``: exit code 3 for a verdict that bad."""
    return click.option(
        "--fail-on",
        type=click.Choice(["degraded", "collapsed"]),
        help="Exit with 3 if it is that bad, or not judged.",
    )(command)
