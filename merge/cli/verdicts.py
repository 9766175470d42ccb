"""What is told of an evaluation, and the exit code that its verdict asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from merge_models.merge.errors import printable

if TYPE_CHECKING:
    from merge_models.evals.schema import Evaluation, Verdict

FAILED = 3
"""Exit code of ``--fail-on``."""


def say(line: str) -> None:
    """Tells a step that begins."""
    click.echo(printable(line, 400), err=True)


def tell(evaluation: Evaluation) -> None:
    """Prints the verdict and its findings."""
    verdict = evaluation.verdict
    if verdict is None:
        return
    colours = {"healthy": "green", "degraded": "yellow", "collapsed": "red", "not judged": "yellow"}
    name = printable(evaluation.merge.name, 200)
    click.echo(f"{name}: " + click.style(verdict.summary, fg=colours[verdict.status]))
    for finding in verdict.findings:
        click.echo(printable(f"  {finding.cause} ({finding.where}): {finding.evidence}", 2000))
        click.echo(printable(f"    try: {finding.remedy}", 2000))
    for note in evaluation.notes:
        click.echo(printable(f"  note: {note}", 2000))


def tell_outlets(outlets: Sequence[Path]) -> None:
    """Says where the reports are."""
    for outlet in outlets:
        click.echo(f"report: {printable(str(outlet), 2000)}")


def exit_by_verdict(verdicts: list[Verdict], fail_on: str | None) -> None:
    """Ends the process with code 3 if a verdict is as bad as ``fail_on`` or worse, or could not be reached.

    A check that was asked for must not pass because nothing could be checked.
    """
    worse = {"degraded": ("degraded", "collapsed"), "collapsed": ("collapsed",)}
    bad = (*worse[fail_on], "not judged") if fail_on else ()
    if any(verdict.status in bad for verdict in verdicts):
        sys.exit(FAILED)
