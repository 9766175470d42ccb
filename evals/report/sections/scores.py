"""Scores on tasks, and generated text."""

from __future__ import annotations

from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.report.html import Html, details, name, table, tag
from merge_models.evals.report.numbers import UNDEFINED, interval, number, percent, value_of
from merge_models.evals.report.sections.figures import Section
from merge_models.evals.report.terms import GENERATION, RECOVERY
from merge_models.evals.schema import (
    Evaluation,
    Generation,
    Recovery,
    TaskDiagnosis,
    TaskScore,
)


def tasks(evaluation: Evaluation) -> Section | None:
    """Scores with recovery; the mean never without the minimum."""
    tasks = evaluation.tasks
    if tasks is None or not (tasks.scores or tasks.recovery):
        return None
    body = [_recovery_line(tasks), score_table(evaluation, tasks)]
    return Section("tasks", "Tasks", body)


def _recovery_line(found: TaskDiagnosis) -> Html | None:
    if found.mean_recovery is None and found.least_recovery is None:
        return None
    least = [" (", name(found.least_recovered), ")"] if found.least_recovered else None
    return tag(
        "p",
        "Mean recovery ",
        tag("b", percent(found.mean_recovery)),
        "; least ",
        tag("b", percent(found.least_recovery)),
        least,
        ". ",
        RECOVERY.definition,
    )


def score_rows(found: TaskDiagnosis) -> list[tuple[TaskScore, dict[str, TaskScore], Recovery | None]]:
    """Returns (any score of the task, scores by model, recovery) for each task and metric, in order."""
    grouped: dict[tuple[str, str], dict[str, TaskScore]] = {}
    for score in found.scores:
        grouped.setdefault((score.task, score.metric), {})[score.model] = score
    recovered = {(r.task, r.metric): r for r in found.recovery}
    return [(next(iter(by.values())), by, recovered.get(key)) for key, by in grouped.items()]


def score_table(evaluation: Evaluation, found: TaskDiagnosis) -> Html:
    """Returns a table with a row a task; the best model of each row in bold."""
    rows = []
    for first, by_model, recovery in score_rows(found):
        values = {model: score.score.value for model, score in by_model.items()}
        best = (max if first.higher_is_better else min)(values.values())
        arrow = "↑" if first.higher_is_better else "↓"
        task = [name(first.task), " ", tag("small", f"{first.metric} {arrow}, n = {first.n:,}")]
        merge, *others = (_score(by_model.get(model.name), best) for model in evaluation.models)
        rows.append([task, merge, _meter(recovery.fraction if recovery else None), *others])
    merge_name, *other_names = (name(model.name) for model in evaluation.models)
    head = ["Task", merge_name, "Recovery", *other_names]
    return table("Scores with 95 % intervals; the best of each row in bold", head, rows, label="Task scores")


def _score(score: TaskScore | None, best: float) -> list[object]:
    if score is None:
        return [UNDEFINED]
    shown = number(score.score.value)
    spread = interval(score.score)
    return [
        tag("b", shown) if score.score.value == best else shown,
        tag("small", " ", spread) if spread else None,
    ]


def _meter(share: float | None) -> Html:
    """A share as a number over a small bar; the bar is a picture only."""
    if share is None:
        return Html(UNDEFINED)
    width = 100 * min(max(share, 0.0), 1.0)
    bar = tag("span", tag("span", style=f"width:{width:.0f}%"), class_="meter", aria_hidden="true")
    return tag("span", percent(share), bar)


def generation(evaluation: Evaluation) -> Section | None:
    """Returns the section on degenerate text, with samples to read; None where nothing was continued."""
    generations = evaluation.tasks.generation if evaluation.tasks else ()
    if not generations:
        return None
    counters = table(
        GENERATION.definition,
        ["Model", "Continuations", *(one.heading for one in shown("text"))],
        [
            [name(g.model), f"{g.n:,}", *(value_of(one, getattr(g, one.key)) for one in shown("text"))]
            for g in generations
        ],
        label="Generated text",
    )
    return Section("generation", "Generated text", [counters, [_samples(g, evaluation) for g in generations]])


def _samples(g: Generation, evaluation: Evaluation) -> Html | None:
    if not g.samples:
        return None
    items = [
        tag("li", tag("span", prompt, class_="prompt"), tag("span", text or "(empty)"), dir="auto")
        for prompt, text in g.samples
    ]
    return details(
        ["Samples of ", name(g.model)],
        tag("ul", items, class_="samples"),
        open=g.model == evaluation.merge.name,
    )
