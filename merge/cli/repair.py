"""The command ``repair``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.options import PATH, measure_options
from merge_models.merge.cli.recipes import parse_weights
from merge_models.merge.cli.verdicts import say, tell_outlets

if TYPE_CHECKING:
    from merge_models.evals.schema import RepairReport


@click.command("repair")
@click.argument("target")
@click.option("--parents", "-p", multiple=True, help="A parent (repeat) [default: those of the manifest].")
@click.option("--weights", help="The parents' shares: .5,.3,.2 [default: the recipe's].")
@click.option("-o", "--out", required=True, type=PATH, help="Output folder.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands there.")
@measure_options
@click.option("--report", multiple=True, type=PATH, help="Write .html, .json or .md: before and after.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def repair_command(target: str, **options: Any) -> None:
    """Reset the activation scales of the merge TARGET to its parents' mean (REPAIR).

    \b
    Example: merge-models repair ./merged -o ./repaired
    """
    outlets, quiet, out = options.pop("report"), options.pop("quiet"), options.pop("out")
    threads, saying = options.pop("threads"), (lambda line: None) if quiet else say
    with _interrupted("nothing was published: the same command begins again"):
        from merge_models.evals.inputs.lineage import lineage
        from merge_models.evals.inputs.settings import Running, TextSample
        from merge_models.evals.repairs import repair
        from merge_models.evals.report.outlets import check_outlets

        check_outlets(outlets)
        family = lineage(target, options.pop("parents"), None, parse_weights(options.pop("weights")))
        weights, overwrite = family.weights, options.pop("overwrite")
        text = TextSample(options.pop("data"), options.pop("tokens"))
        running = Running(threads=threads, progress=saying, **options)
        report = repair(
            target,
            family.parents,
            out=out,
            weights=weights,
            overwrite=overwrite,
            text=text,
            running=running,
        )
    if not quiet:
        _tell_repair(report)
    if not outlets:
        return
    with _interrupted(f"{out} is complete, its report is not written: merge-models eval {out} measures it"):
        from merge_models.evals.evaluation import evaluate
        from merge_models.evals.measures.activations.measure import Activations
        from merge_models.evals.measures.weights.measure import Weights
        from merge_models.evals.report.outlets import write_outlets

        depths = [Weights(), Activations(information=False)]
        evaluation = evaluate(
            out, family.parents, weights=weights, measures=depths, text=text, running=running
        )
        write_outlets(evaluation.model_copy(update={"repair": report}), outlets)
    if not quiet:
        tell_outlets(outlets)


@contextmanager
def _interrupted(what: str) -> Iterator[None]:
    """Lets an interruption that does not know better say what is there, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.args = interruption.args or (what,)
        raise


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
