"""The commands ``eval``, ``inspect`` and ``repair``: parse, call the API, print. ``merge/cli`` adds
them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.errors import MergeError, printable

if TYPE_CHECKING:
    from merge_models.evals.schema import Evaluation, RepairReport, Verdict

PATH: Any = click.Path(path_type=Path)
FAILED = 3
"""Exit code of ``--fail-on``."""


def _measure_options(command: Any) -> Any:
    options = [
        click.option(
            "--data", default="built-in", show_default=True, help="Calibration text: .jsonl or .txt."
        ),
        click.option("--tokens", type=click.IntRange(256), default=8192, show_default=True, help="Of it."),
        click.option("--seed", default=0, show_default=True, help="Of samples, bootstraps."),
        click.option("--device", help="Where models run [default: cpu]."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores]."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def fail_on_option(command: Any) -> Any:
    """``--fail-on``: exit code 3 for a verdict that bad."""
    return click.option(
        "--fail-on", type=click.Choice(["degraded", "collapsed"]), help="Exit with 3 if it is that bad."
    )(command)


@click.command("eval")
@click.argument("merges", nargs=-1, required=True)
@click.option("--parents", "-p", multiple=True, help="A parent (repeat) [default: those of the manifest].")
@click.option("--base", help="The model that the parents were tuned from [default: the manifest's].")
@click.option("--weights", help="The parents' shares: .5,.3,.2 [default: the recipe's].")
@click.option("--weights-only", is_flag=True, help="No forward pass: screening, in seconds.")
@click.option("--tasks", "task_files", multiple=True, type=PATH, help="JSONL of questions.")
@click.option("--perplexity", type=click.IntRange(0), default=0, help="Tokens through a sliding window.")
@click.option("--lm-eval", help="Tasks of lm-evaluation-harness: arc_easy,gsm8k (extra lm-eval).")
@_measure_options
@click.option("--report", multiple=True, type=PATH, help="Write .html, .json or .md.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@fail_on_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def eval_command(merges: tuple[str, ...], **options: Any) -> None:
    """Did the merge collapse? Measures MERGES against their parents.

    \b
    Example: merge-models eval ./merged --report report.html --fail-on collapsed
    """
    from merge_models.evals.outlets import check_outlets, write_outlets

    outlets, as_json = options.pop("report"), options.pop("as_json")
    quiet, fail_on = options.pop("quiet"), options.pop("fail_on")
    check_outlets(outlets)
    if as_json and len(merges) > 1:
        raise click.UsageError("--json prints one merge's report; for several, write --report FILE.json")
    say = (lambda line: None) if quiet or as_json else _say
    evaluations = [_evaluate(merge, dict(options), say) for merge in merges]
    if len(evaluations) == 1:
        write_outlets(evaluations[0], outlets)
    else:
        from merge_models.evals.report.comparison import compare

        write_outlets(compare(evaluations), outlets)
    if as_json:
        click.echo(evaluations[0].to_json())
    elif not quiet:
        for evaluation in evaluations:
            tell(evaluation)
        tell_outlets(outlets)
    exit_by_verdict([e.verdict for e in evaluations if e.verdict], fail_on)


def _say(line: str) -> None:
    click.echo(printable(line, 400), err=True)


def _evaluate(merge: str, options: dict[str, Any], say: Any) -> Evaluation:
    from merge_models.evals.evaluation import MEASURES, evaluate
    from merge_models.evals.tasks import TaskSettings

    weights = options.pop("weights")
    only = options.pop("weights_only")
    lm_eval = options.pop("lm_eval")
    perplexity = options.pop("perplexity")
    tasks = TaskSettings(
        perplexity_tokens=perplexity,
        files=options.pop("task_files"),
        lm_eval=tuple(lm_eval.split(",")) if lm_eval else (),
    )
    return evaluate(
        merge,
        options.pop("parents"),
        options.pop("base"),
        weights=parse_weights(weights),
        measure=("weights",) if only else MEASURES,
        tasks=tasks,
        progress=say,
        **options,
    )


def review_options(command: Any) -> Any:
    """``--eval`` and what goes with it, for commands that merge."""
    options = [
        click.option("--eval", "evaluates", is_flag=True, help="Judge the merge; the verdict ends the card."),
        click.option("--data", default="built-in", show_default=True, help="--eval: calibration text."),
        click.option("--report", multiple=True, type=PATH, help="--eval: write .html, .json or .md."),
        fail_on_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


class Review:
    """Judges a finished merge before it is published.

    Attributes:
        evaluation: what was found; None until then.
    """

    def __init__(self, data: str, outlets: Sequence[Path], fail_on: str | None, *, quiet: bool) -> None:
        from merge_models.evals.outlets import check_outlets

        check_outlets(outlets)
        self._data, self._outlets, self._fail_on, self._quiet = data, outlets, fail_on, quiet
        self.evaluation: Evaluation | None = None

    def check(self, models: Sequence[Path]) -> None:
        """Raises ``MergeError`` for text or tokenizers that would stop the evaluation after the merge."""
        from merge_models.evals.calibration import check_same_tokenizer, read_calibration

        check_same_tokenizer(models, read_calibration(self._data), "leave out --eval")

    def judge(
        self,
        folder: Path,
        name: str,
        parents: Sequence[Path],
        base: Path | None,
        weights: Sequence[float] | None,
    ) -> str:
        """Evaluates a folder; returns the section for the model card."""
        from merge_models.evals.evaluation import evaluate

        say = (lambda line: None) if self._quiet else _say
        self.evaluation = evaluate(
            folder, parents, base, weights=weights, data=self._data, name=name, progress=say
        )
        return self.evaluation.to_markdown()

    def close(self) -> None:
        """Writes the reports, tells the verdict, and ends the process with 3 if it is too bad."""
        from merge_models.evals.outlets import write_outlets

        if self.evaluation is None:
            return
        write_outlets(self.evaluation, self._outlets)
        if not self._quiet:
            tell(self.evaluation)
            tell_outlets(self._outlets)
        exit_by_verdict([self.evaluation.verdict] if self.evaluation.verdict else [], self._fail_on)


def parse_weights(text: str | None) -> list[float] | None:
    """``.5,.3,.2`` as numbers."""
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(" ", "").split(",")]
    except ValueError:
        raise MergeError(f"--weights '{text}' is not a list of numbers; write .5,.3,.2") from None


def tell(evaluation: Evaluation) -> None:
    """Prints the verdict and its findings."""
    verdict = evaluation.verdict
    if verdict is None:
        return
    colours = {"healthy": "green", "degraded": "yellow", "collapsed": "red"}
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
    """Ends the process with code 3 if a verdict is as bad as ``fail_on`` or worse."""
    bad = {"degraded": ("degraded", "collapsed"), "collapsed": ("collapsed",)}.get(fail_on or "", ())
    if any(verdict.status in bad for verdict in verdicts):
        sys.exit(FAILED)


@click.command("inspect")
@click.argument("models", nargs=-1, required=True)
@click.option("--base", help="The model that they were tuned from.")
@click.option("--headers-only", is_flag=True, help="Compatible or not, from headers alone: in a second.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
def inspect_command(
    models: tuple[str, ...], base: str | None, headers_only: bool, as_json: bool, threads: int | None
) -> None:
    """Before a merge: how far apart are MODELS, and which strategies fit them.

    \b
    Example: merge-models inspect ./math ./code --base ./base
    """
    from merge_models.evals.inspect import inspect_parents

    found = inspect_parents(models, base, headers_only=headers_only, threads=threads)
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    click.echo(found.to_json() if as_json else found.to_text(width))
    if not found.compatible:
        sys.exit(FAILED)


@click.command("repair")
@click.argument("target")
@click.option("--parents", "-p", multiple=True, help="A parent (repeat) [default: those of the manifest].")
@click.option("--weights", help="The parents' shares: .5,.3,.2 [default: the recipe's].")
@click.option("-o", "--out", required=True, type=PATH, help="Output folder.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands there.")
@_measure_options
@click.option("--report", multiple=True, type=PATH, help="Write .html, .json or .md: before and after.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def repair_command(target: str, **options: Any) -> None:
    """Reset the activation scales of the merge TARGET to its parents' mean (REPAIR).

    \b
    Example: merge-models repair ./merged -o ./repaired
    """
    from merge_models.evals.evaluation import evaluate
    from merge_models.evals.lineage import lineage
    from merge_models.evals.outlets import check_outlets, write_outlets
    from merge_models.evals.repairs import repair

    outlets, quiet = options.pop("report"), options.pop("quiet")
    out, overwrite, threads = options.pop("out"), options.pop("overwrite"), options.pop("threads")
    check_outlets(outlets)
    family = lineage(target, options.pop("parents"), None, parse_weights(options.pop("weights")))
    options["weights"] = family.weights
    say = (lambda line: None) if quiet else _say
    report = repair(target, family.parents, out=out, overwrite=overwrite, progress=say, **options)
    if not quiet:
        _tell_repair(report)
    if outlets:
        found = evaluate(
            out,
            family.parents,
            measure=("weights", "activations"),
            threads=threads,
            progress=say,
            **options,
        )
        write_outlets(found.model_copy(update={"repair": report}), outlets)
        if not quiet:
            tell_outlets(outlets)


def _tell_repair(report: RepairReport) -> None:
    from statistics import median

    ratios = [
        (layer.variance_ratio_before, layer.variance_ratio_after)
        for layer in report.layers
        if layer.variance_ratio_before is not None and layer.variance_ratio_after is not None
    ]
    if ratios:
        before, after = (median(pair[i] for pair in ratios) for i in (0, 1))
        click.echo(
            f"variance ratio to the parents, median of {len(ratios)} modules: {before:.3f} -> {after:.3f}"
        )
    if all(before == after for before, after in ratios):
        click.echo("no rescaling lowers the loss: the copy has the merge's own weights")
    if report.loss_before is not None and report.loss_after is not None:
        click.echo(
            f"loss on held-out text, nats a token: {report.loss_before:.4f} -> {report.loss_after:.4f}"
        )
