"""What is told of a merge that is done."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.errors import counted, printable
from merge_models.merge.sizes import shown_size

if TYPE_CHECKING:
    from merge_models.merge.api.running import MergeResult


def tell_result(result: MergeResult, verbose: bool) -> None:
    """Prints where the output is, what it took, and what the strategy found."""
    rate = (result.bytes_read + result.bytes_written) / max(result.seconds, 1e-9)
    click.echo(
        f"{printable(str(result.path), 2000)}: {shown_size(result.bytes_written)} written in"
        f" {result.seconds:.1f} s ({shown_size(rate)}/s read and written)"
    )
    if result.resumed:
        click.echo(f"  kept from an earlier run, and checked: {counted(result.resumed, 'tensor')}")
    for line in figure_lines(result.figures, verbose):
        click.echo(printable(line, 2000))
    if result.rounded:
        click.echo(f"  {result.rounded}")


def figure_lines(figures: dict[str, dict[str, Any]], verbose: bool) -> list[str]:
    """Medians and extremes of what the strategy told, or every tensor's."""
    if verbose:
        return [
            f"  {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in f.items()) for name, f in figures.items()
        ]
    from merge_models.merge.running.survival import KEYS

    lines = []
    for key in dict.fromkeys(key for values in figures.values() for key in values if key not in KEYS):
        values = [f[key] for f in figures.values() if key in f]
        if all(isinstance(value, bool) for value in values):
            lines.append(f"  {key}: {sum(values)} of {len(values)} tensors")
        elif all(isinstance(value, (int, float)) for value in values):
            ordered = sorted(values)
            lines.append(f"  {key}: {_range(ordered[len(ordered) // 2], ordered[0], ordered[-1])}")
        elif all(isinstance(value, str) for value in values):
            lines += [f"  {counted(number, 'tensor')}: {said}" for said, number in Counter(values).items()]
    return lines


def _range(middle: float, least: float, most: float) -> str:
    """``median M, A to B``, with as many digits as it takes to tell the three apart."""
    if least == most:
        return f"{_short(middle)} everywhere"
    three = {least, middle, most}
    digits = next((n for n in range(4, 17) if len({f"{x:.{n}g}" for x in three}) == len(three)), 17)
    spread = max(abs(least), abs(most))
    if digits > 6 and spread:  # nearly the same number: tell how far from it
        return f"{_short(middle)} everywhere to {(most - least) / spread:.1e} of it"
    return f"median {_short(middle, digits)}, {_short(least, digits)} to {_short(most, digits)}"


def _short(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def conclude(problems: Sequence[str], verdict: str) -> None:
    """Prints what was found wrong and exits 1, or that nothing was."""
    for line in problems:
        click.echo(line)
    if problems:
        sys.exit(1)
    click.echo(printable(verdict, 2000))
