"""The command ``eval``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.options import PATH, fail_on_option, measure_options
from merge_models.merge.cli.recipes import parse_weights
from merge_models.merge.cli.verdicts import exit_by_verdict, say, tell, tell_outlets

if TYPE_CHECKING:
    from merge_models.evals.schema import Evaluation


@click.command("eval")
@click.argument("merges", nargs=-1, required=True)
@click.option("--parents", "-p", multiple=True, help="A parent (repeat) [default: those of the manifest].")
@click.option("--base", help="The model that the parents were tuned from [default: the manifest's].")
@click.option("--weights", help="The parents' shares: .5,.3,.2 [default: the recipe's].")
@click.option("--weights-only", is_flag=True, help="No forward pass: screening, in seconds.")
@click.option("--tasks", "task_files", multiple=True, type=PATH, help="JSONL of questions.")
@click.option("--perplexity", type=click.IntRange(0), default=0, help="Tokens through a sliding window.")
@click.option("--lm-eval", help="Tasks of lm-evaluation-harness: arc_easy,gsm8k (extra lm-eval).")
@measure_options
@click.option("--report", multiple=True, type=PATH, help="Write .html, .json or .md.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@fail_on_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def eval_command(merges: tuple[str, ...], **options: Any) -> None:
    """Did the merge collapse? Measures MERGES against their parents.

    \b
    Example: merge-models eval ./merged --report report.html --fail-on collapsed
    """
    from merge_models.evals.report.outlets import check_outlets, write_outlets

    outlets, as_json = options.pop("report"), options.pop("as_json")
    quiet, fail_on = options.pop("quiet"), options.pop("fail_on")
    check_outlets(outlets)
    if options["weights_only"]:
        _refuse_what_runs(options)
    if as_json and len(merges) > 1:
        raise click.UsageError("--json prints one merge's report; for several, write --report FILE.json")
    saying = (lambda line: None) if quiet or as_json else say
    evaluations = [_evaluate(merge, dict(options), saying) for merge in merges]
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


def _refuse_what_runs(options: dict[str, Any]) -> None:
    """What needs models that run is not left out in silence."""
    given = [name for name in ("task_files", "perplexity", "lm_eval", "device") if options[name]]
    given += ["data"] if options["data"] != "built-in" else []
    if given:
        shown = {"task_files": "--tasks", "lm_eval": "--lm-eval"}.get(given[0], f"--{given[0]}")
        raise click.UsageError(f"{shown} needs models that run; leave out --weights-only")


def _evaluate(merge: str, options: dict[str, Any], say: Any) -> Evaluation:
    from merge_models.evals.evaluation import evaluate
    from merge_models.evals.inputs.settings import Running, TextSample
    from merge_models.evals.measures.activations.measure import Activations
    from merge_models.evals.measures.tasks.measure import Tasks
    from merge_models.evals.measures.tasks.settings import TaskSettings
    from merge_models.evals.measures.weights.measure import Weights

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
        measures=[Weights()] if only else [Weights(), Activations(), Tasks(tasks)],
        text=TextSample(options.pop("data"), options.pop("tokens")),
        running=Running(progress=say, **options),
    )
