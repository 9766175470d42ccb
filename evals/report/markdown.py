"""An evaluation as a section of a model card: verdict, findings, a few tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.report import charts
from merge_models.evals.report.escape import markdown_code, markdown_prose, markdown_text
from merge_models.evals.report.facts import STATUS_MARKS, STATUS_WORDS, conclusion, facts, missing, refusals
from merge_models.evals.report.numbers import UNDEFINED, measured, number, percent, ranges, value_of
from merge_models.evals.report.sections import decision, location, score_rows
from merge_models.evals.schema import Evaluation, Finding, Verdict

MOST_LAYERS = 16


def markdown(evaluation: Evaluation) -> str:
    """Returns the report as Markdown, headings from the second level on, ending in a line break.

    Every name and text of the input is escaped: it cannot become markup, a link, a mention or another cell.
    """
    parts = [
        *_verdict(evaluation),
        *_facts(evaluation),
        *_profile(evaluation),
        *_predictions(evaluation),
        *_sentences(evaluation),
        *_tasks(evaluation),
        *_generation(evaluation),
        *_weights(evaluation),
        *_repair(evaluation),
        *_method(evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = (0,)) -> str:
    """Returns a table whose columns ``words`` are text and the others numbers. Cells are Markdown already."""
    rule = ["---" if n in words else "---:" for n in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _verdict(evaluation: Evaluation) -> list[str]:
    verdict = evaluation.verdict
    title = "## Evaluation of the merge"
    parents = ", ".join(markdown_code(parent.name) for parent in evaluation.parents)
    base = f", base {markdown_code(evaluation.base.name)}" if evaluation.base else ""
    models = f"{markdown_code(evaluation.merge.name)} against its parents {parents}{base}."
    if verdict is None:
        return [title, models]
    score = f" Score {number(verdict.score)}." if verdict.score is not None else ""
    status = f"**{STATUS_MARKS[verdict.status]} {STATUS_WORDS[verdict.status]}.**"
    line = f"{status} {markdown_prose(conclusion(verdict))}".rstrip()
    basis = f"Judged by {verdict.basis}.{score}"
    listed = [_finding(finding) for finding in verdict.findings]
    return [
        title,
        line,
        f"{models} {basis}",
        *(["### Findings", "\n".join(listed)] if listed else []),
        *_skills(verdict),
    ]


def _finding(finding: Finding) -> str:
    status = "remark" if finding.status == "healthy" else finding.status
    decided = decision(finding)
    source = f"{decided} ({markdown_prose(finding.source)})" if decided else markdown_prose(finding.source)
    cause = finding.cause[:1].upper() + finding.cause[1:]
    told = markdown_prose(f"{location(finding)} {finding.evidence}")
    return (
        f"- **{cause}** ({status}). {told}\n"
        f"  - {'Threshold' if decided else 'Source'}: {source}\n"
        f"  - Remedy: {markdown_prose(finding.remedy)}"
    )


def _skills(found: Verdict) -> list[str]:
    told = []
    bad = [(s, tuple(n for n, of in found.by_layer.items() if of == s)) for s in ("degraded", "collapsed")]
    layers = "; ".join(f"{status} {ranges(numbers)}" for status, numbers in bad if numbers)
    if layers:
        told.append(f"Layers: {layers}.")
    if found.by_skill:
        skills = ", ".join(f"{markdown_code(skill)} {status}" for skill, status in found.by_skill.items())
        told.append(f"Skills: {skills}.")
    return told


def _facts(evaluation: Evaluation) -> list[str]:
    told = facts(evaluation)
    if not told:
        return []
    rows = ([f.label, f.value, markdown_text(f.note)] for f in told)
    return [table(["Measure", "Value", ""], rows, words=(0, 2))]


def _every(count: int) -> list[int]:
    """At most ``MOST_LAYERS`` positions, the first and the last among them."""
    if count <= MOST_LAYERS:
        return list(range(count))
    return sorted({round(n * (count - 1) / (MOST_LAYERS - 1)) for n in range(MOST_LAYERS)})


def _profile(evaluation: Evaluation) -> list[str]:
    """Ratios by depth: variance and rank of each kind of site."""
    drawn = [chart for chart in charts.activation_profiles(evaluation) if chart.short]
    if not drawn:
        return []
    columns = [
        (f"{panel.title}, {chart.short}", panel.series[0].values) for chart in drawn for panel in chart.panels
    ]
    labels = drawn[0].positions
    label = markdown_text if drawn[0].depth == "layer" else markdown_code
    kept = _every(len(labels))
    rows = [[label(labels[n]), *(number(values[n]) for _, values in columns)] for n in kept]
    note = f" {len(kept)} of {len(labels)} {drawn[0].depth}s." if len(kept) < len(labels) else ""
    return [
        "### Activations by depth",
        f"Ratios of the merge to the parents' weighted mean; 1 is as the parents.{note}",
        table([drawn[0].depth.capitalize(), *(label for label, _ in columns)], rows),
    ]


def _predictions(evaluation: Evaluation) -> list[str]:
    head = evaluation.activations.head if evaluation.activations else None
    if head is None:
        return []
    divergences = {d.model: d for d in head.divergences}
    own_numbers = [one for one in shown("head") if one.card]
    distances = [one for one in shown("divergence") if one.card]
    rows = []
    for model in evaluation.models:
        own = [value_of(one, getattr(head, one.key).get(model.name)) for one in own_numbers]
        other = divergences.get(model.name)
        apart = [value_of(one, getattr(other, one.key)) if other else UNDEFINED for one in distances]
        rows.append([markdown_code(model.name), *own, *apart])
    columns = ["Model", *(one.heading for one in (*own_numbers, *distances))]
    return ["### Predictions", table(columns, rows)]


def _sentences(evaluation: Evaluation) -> list[str]:
    sentences = evaluation.activations.sentences if evaluation.activations else ()
    if not sentences:
        return []
    likeness = [one for one in shown("sentence") if one.card]
    rows = [[markdown_code(s.model), *(measured(getattr(s, one.key)) for one in likeness)] for s in sentences]
    return ["### Sentence vectors", table(["Model", *(one.heading for one in likeness)], rows)]


def _tasks(evaluation: Evaluation) -> list[str]:
    tasks = evaluation.tasks
    if tasks is None or not tasks.scores:
        return []
    rows = []
    for first, by_model, recovery in score_rows(tasks):
        arrow = "↑" if first.higher_is_better else "↓"
        scores = [by_model.get(model.name) for model in evaluation.models]
        rows.append(
            [
                f"{markdown_code(first.task)} {markdown_text(first.metric)} {arrow}",
                *(number(s.score.value) if s else UNDEFINED for s in scores),
                percent(recovery.fraction) if recovery else UNDEFINED,
            ]
        )
    head = ["Task", *(markdown_code(model.name) for model in evaluation.models), "Recovery"]
    told = ["### Tasks", table(head, rows)]
    if tasks.mean_recovery is not None or tasks.least_recovery is not None:
        least = f" ({markdown_code(tasks.least_recovered)})" if tasks.least_recovered else ""
        told.append(
            f"Mean recovery {percent(tasks.mean_recovery)}, least {percent(tasks.least_recovery)}{least}."
        )
    return told


def _generation(evaluation: Evaluation) -> list[str]:
    generations = evaluation.tasks.generation if evaluation.tasks else ()
    if not generations:
        return []
    signs = [one for one in shown("text") if one.card]
    rows = [
        [markdown_code(g.model), *(value_of(one, getattr(g, one.key)) for one in signs)] for g in generations
    ]
    head = ["Generated text", *(one.heading for one in signs)]
    return ["### Generated text", table(head, rows)]


def _weights(evaluation: Evaluation) -> list[str]:
    weights = evaluation.weights
    if weights is None:
        return []
    depth = [d for d in weights.depth if d.layer is not None]
    drawn = [one for one in shown("layer") if one.card and one.drawing]
    known = [one for one in drawn if any(getattr(d, one.key) is not None for d in depth)]
    if not known:
        return []
    kept = [depth[n] for n in _every(len(depth))]
    head = ["Layer", *(one.label for one in known)]
    rows = [[str(d.layer), *(number(getattr(d, one.key)) for one in known)] for d in kept]
    return [
        "### Weights by depth",
        "Medians over each layer's matrices, as ratios to the parents' mean.",
        table(head, rows),
    ]


def _repair(evaluation: Evaluation) -> list[str]:
    report = evaluation.repair
    if report is None:
        return []
    pairs = [(r.variance_ratio_before, r.variance_ratio_after) for r in report.layers]
    before = [b for b, _ in pairs if b is not None]
    after = [a for _, a in pairs if a is not None]
    rows = [
        ["Lowest variance ratio", number(min(before, default=None)), number(min(after, default=None))],
        ["Loss on held-out text, nats", number(report.loss_before), number(report.loss_after)],
    ]
    return ["### Repair", table(["", "Before", "After"], rows)]


def _method(evaluation: Evaluation) -> list[str]:
    told = [*missing(evaluation), *refusals(evaluation), *evaluation.notes]
    activations = evaluation.activations
    if activations is not None:
        c = activations.calibration
        domains = f" ({', '.join(c.domains)})" if c.domains else ""
        told.insert(
            0, f"Text: {c.source}{domains}, {c.tokens:,} tokens in {c.sequences:,} sequences, seed {c.seed}."
        )
    versions = ", ".join(f"{package} {number_}" for package, number_ in evaluation.versions.items())
    told.append(f"Measured {evaluation.created}{f' with {versions}' if versions else ''}.")
    return ["### How it was measured", "\n".join(f"- {markdown_prose(sentence)}" for sentence in told)]
