"""The command ``demo``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from merge_models.merge.errors import printable


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Leave the merged models in this folder.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the reports as one .html page.")
def demo(keep: Path | None, report: Path | None) -> None:
    """Merge three tiny trained experts with every strategy, score each result, and judge two.

    \b
    Example: merge-models demo --report demo.html
    """
    import tempfile

    from merge_models.evals.report.outlets import check_outlets
    from merge_models.merge.demo.run import overdo, run_demo

    check_outlets([report] if report else [])
    with tempfile.TemporaryDirectory(prefix="merge-models-demo-") as scratch:
        folder = keep or Path(scratch)
        run_demo(folder, click.echo)
        click.echo("\nmerge-models eval, of a merge that keeps much of each skill,")
        click.echo("and of deltas added up four times too strongly:")
        _judge_demo([folder / "task_arithmetic", overdo(folder)], Path(scratch), report)


def _judge_demo(merges: Sequence[Path], scratch: Path, report: Path | None) -> None:
    from merge_models.evals.evaluation import evaluate
    from merge_models.evals.inputs.settings import TextSample
    from merge_models.evals.measures.activations.measure import Activations
    from merge_models.evals.measures.tasks.measure import Tasks
    from merge_models.evals.measures.tasks.settings import TaskSettings
    from merge_models.evals.measures.weights.measure import Weights
    from merge_models.evals.report.comparison import compare
    from merge_models.evals.report.outlets import write_outlets
    from merge_models.merge.cli.verdicts import tell
    from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out, solved

    text, questions = scratch / "solved.jsonl", scratch / "questions.jsonl"
    rows = [{"domain": f"{name} (text)", "text": line} for name in SKILLS for line in solved(name, 150)]
    text.write_text("\n".join(map(json.dumps, rows)))
    items = [
        {"task": name, "prompt": prompt, "answer": skill.answer(prompt)}
        for name, skill in SKILLS.items()
        for prompt in held_out(name, 60)
    ]
    questions.write_text("\n".join(map(json.dumps, items)))
    experts, base = [demo_folder(name) for name in SKILLS], demo_folder("base")
    # Trained on answers alone, they are at a loss on running text: perplexity and continuations say nothing.
    tasks = TaskSettings(files=(questions,), perplexity_tokens=0, continuations=0)
    measures = [Weights(), Activations(), Tasks(tasks)]
    evaluations = [
        evaluate(merge, experts, base, measures=measures, text=TextSample(text, 2048, 32)) for merge in merges
    ]
    for evaluation in evaluations:
        tell(evaluation)
    if report:
        write_outlets(compare(evaluations), [report])
        click.echo(f"report: {printable(str(report), 2000)}")
