"""Many merges side by side: one ranked table, and their profiles over each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from merge_models.evals.diagnostics.diagnostic import Diagnostic
from merge_models.evals.diagnostics.drawing import RatioByDepth
from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.inputs.lineage import unique_names
from merge_models.evals.report import charts
from merge_models.evals.report.escape import markdown_code, markdown_prose
from merge_models.evals.report.facts import (
    SEVERITY,
    STATUS_MARKS,
    degenerate_share,
    furthest,
    loss_gap,
    lowest,
    nearest_parent,
)
from merge_models.evals.report.html import Html, name, prose, table, tag
from merge_models.evals.report.markdown import table as markdown_table
from merge_models.evals.report.numbers import number, percent
from merge_models.evals.report.page import document
from merge_models.evals.report.sections import Section, badge, figure, location
from merge_models.evals.report.shapes import Panel, Profile, Role, Series
from merge_models.evals.schema import SCHEMA_VERSION, Basis, Evaluation, Outcome, Record


class Ranked(Record):
    """One merge in the ranking.

    Attributes:
        rank: from 1, the best; equal scores share a rank.
        name: the merge's, unique in the comparison.
        status, score, basis, summary: of its verdict.
        variance_ratio: the one of its sites that is furthest from 1; ``effective_rank_ratio``: the lowest.
        kl: to its nearest parent, nats; ``loss_gap``: loss above its best parent, nats.
        mean_recovery, least_recovery, least_recovered: of its tasks.
        degenerate: share of degenerate continuations.
    """

    rank: int
    name: str
    status: Outcome | None = None
    score: float | None = None
    basis: Basis | None = None
    summary: str = ""
    variance_ratio: float | None = None
    effective_rank_ratio: float | None = None
    kl: float | None = None
    loss_gap: float | None = None
    mean_recovery: float | None = None
    least_recovery: float | None = None
    least_recovered: str | None = None
    degenerate: float | None = None


class Comparison(Record):
    """Several merges, best first: by status, not judged last; then by score, without one last."""

    schema_version: int = SCHEMA_VERSION
    ranking: tuple[Ranked, ...]
    evaluations: tuple[Evaluation, ...]
    """In the order of the ranking."""

    def to_json(self) -> str:
        """Returns the record as JSON."""
        return self.model_dump_json(indent=1)

    def to_markdown(self) -> str:
        """Returns the ranked table, and what is wrong with each merge that is not healthy."""
        return comparison_markdown(self)

    def to_html(self) -> str:
        """Returns one self-contained page with the table and overlaid profiles."""
        return comparison_page(self)


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """Ranks merges by their verdicts.

    Args:
        evaluations: at least one; merges of the same name are told apart by a number.

    Raises:
        ValueError: there is none.
    """
    if not evaluations:
        raise ValueError("nothing to compare: give at least one evaluation")
    ordered = sorted(evaluations, key=_key)
    labels = unique_names([evaluation.merge.name for evaluation in ordered])
    ranking: list[Ranked] = []
    for n, (label, evaluation) in enumerate(zip(labels, ordered, strict=True)):
        tied = n > 0 and _key(evaluation) == _key(ordered[n - 1])
        ranking.append(_ranked(ranking[-1].rank if tied else n + 1, label, evaluation))
    return Comparison(ranking=tuple(ranking), evaluations=tuple(ordered))


def _key(evaluation: Evaluation) -> tuple[int, bool, float]:
    verdict = evaluation.verdict
    if verdict is None:
        return (len(SEVERITY), True, 0.0)
    return (SEVERITY[verdict.status], verdict.score is None, verdict.score or 0.0)


def _ranked(rank: int, label: str, evaluation: Evaluation) -> Ranked:
    verdict, tasks = evaluation.verdict, evaluation.tasks
    sites = evaluation.activations.sites if evaluation.activations else ()
    variance, thin = furthest(sites, "variance_ratio"), lowest(sites, "effective_rank_ratio")
    nearest = nearest_parent(evaluation)
    return Ranked(
        rank=rank,
        name=label,
        status=verdict.status if verdict else None,
        score=verdict.score if verdict else None,
        basis=verdict.basis if verdict else None,
        summary=verdict.summary if verdict else "",
        variance_ratio=variance[1].value if variance else None,
        effective_rank_ratio=thin[1].value if thin else None,
        kl=nearest[1].value if nearest else None,
        loss_gap=loss_gap(evaluation),
        mean_recovery=tasks.mean_recovery if tasks else None,
        least_recovery=tasks.least_recovery if tasks else None,
        least_recovered=tasks.least_recovered if tasks else None,
        degenerate=degenerate_share(tasks, evaluation.merge.name) if tasks else None,
    )


# The table: its columns once, for both formats

COLUMNS: tuple[tuple[str, Callable[[Ranked], str]], ...] = (
    ("Score", lambda r: number(r.score)),
    ("Variance ratio furthest from 1", lambda r: number(r.variance_ratio)),
    ("Lowest effective-rank ratio", lambda r: number(r.effective_rank_ratio)),
    ("KL to the nearest parent", lambda r: number(r.kl)),
    ("Loss above the best parent", lambda r: number(r.loss_gap)),
    ("Mean recovery", lambda r: percent(r.mean_recovery)),
    ("Least recovery", lambda r: percent(r.least_recovery)),
    ("Degenerate text", lambda r: percent(r.degenerate)),
)
"""Heading and text of each column of numbers; columns without a single number are left out."""


def _columns(comparison: Comparison) -> list[tuple[str, list[str]]]:
    told = [(label, [show(row) for row in comparison.ranking]) for label, show in COLUMNS]
    return [(label, cells) for label, cells in told if any(c != number(None) for c in cells)]


def comparison_markdown(comparison: Comparison) -> str:
    """Returns the ranked table and summaries."""
    columns = _columns(comparison)
    rows = [
        [
            str(row.rank),
            markdown_code(row.name),
            f"{STATUS_MARKS[row.status]} {row.status}" if row.status else "not judged",
            *(cells[n] for _, cells in columns),
        ]
        for n, row in enumerate(comparison.ranking)
    ]
    head = ["Rank", "Merge", "Verdict", *(label for label, _ in columns)]
    parts = ["## Merges, best first", markdown_table(head, rows, words=(0, 1, 2))]
    told = [
        f"- {markdown_code(r.name)}: {markdown_prose(r.summary)}" for r in comparison.ranking if r.summary
    ]
    return "\n\n".join([*parts, *(["\n".join(told)] if told else [])]) + "\n"


def comparison_page(comparison: Comparison) -> str:
    """Returns the page: the table first, then profiles over each other."""
    best = comparison.ranking[0]
    count = len(comparison.ranking)
    opening = tag(
        "div",
        tag("h1", f"{count} merges compared" if count > 1 else "One merge"),
        tag("p", "Best: ", name(best.name), class_="summary"),
        _ranking_table(comparison),
        class_="verdict",
    )
    parts = [part for part in (_profiles(comparison), _summaries(comparison)) if part is not None]
    return document(f"{count} merges compared", opening, parts)


def _ranking_table(comparison: Comparison) -> Html:
    columns = _columns(comparison)
    rows = [
        [
            [f"{row.rank}. ", name(row.name)],
            badge(row.status) if row.status else "not judged",
            *(cells[n] for _, cells in columns),
        ]
        for n, row in enumerate(comparison.ranking)
    ]
    head = ["Merge", "Verdict", *(label for label, _ in columns)]
    return table("Best first: by verdict, then by score", head, rows, words=(1,), label="Ranking")


def _summaries(comparison: Comparison) -> Section | None:
    items = [
        tag(
            "li",
            tag("h3", name(row.name), " ", badge(row.status) if row.status else None),
            tag("p", prose(row.summary)),
            [
                tag(
                    "dl",
                    tag("dt", f.cause[:1].upper(), f.cause[1:]),
                    tag("dd", prose(f"{location(f)} {f.evidence}")),
                    tag("dt", "Remedy"),
                    tag("dd", prose(f.remedy)),
                )
                for f in (evaluation.verdict.findings if evaluation.verdict else ())
                if f.status != "healthy"
            ],
            class_=row.status,
        )
        for row, evaluation in zip(comparison.ranking, comparison.evaluations, strict=True)
        if row.summary
    ]
    if not items:
        return None
    body = tag("div", tag("ol", items), class_="findings")
    return Section("summaries", "What is known of each", [body])


def _profiles(comparison: Comparison) -> Section | None:
    overlaid = (
        _overlay(comparison, diagnostic, diagnostic.drawing)
        for diagnostic in shown("site")
        if isinstance(diagnostic.drawing, RatioByDepth)
    )
    drawn = [chart for chart in overlaid if chart is not None]
    if not drawn:
        return None
    body = [figure(chart) for chart in drawn]
    return Section("profiles", "Profiles by depth", body, drawn)


def _overlay(comparison: Comparison, diagnostic: Diagnostic, drawing: RatioByDepth) -> Profile | None:
    """One line a merge; merges of different depths lie on their own layers' numbers."""
    depths = [charts.depth_of(e.activations.sites) if e.activations else None for e in comparison.evaluations]
    labels = tuple(dict.fromkeys(label for depth in depths if depth for label in depth.labels))
    panels = []
    for kind in charts.SITES:
        series = []
        for n, (row, depth) in enumerate(zip(comparison.ranking, depths, strict=True)):
            if depth is not None and kind in depth.sites:
                values, low, high = charts.estimates(depth.sites[kind], diagnostic.key)
                place = {label: at for at, label in enumerate(depth.labels)}
                spread = [
                    tuple(column[place[label]] if label in place else None for label in labels)
                    for column in (values, low, high)
                ]
                role: Role = "merge" if n == 0 else "parent"  # the best stands out
                series.append(Series(row.name, role, max(0, n - 1), spread[0], spread[1], spread[2]))
        if series:
            panels.append(Panel(charts.SITES[kind], tuple(series)))
    named = any(depth.named for depth in depths if depth)
    word = "module" if named else "layer"
    chart = charts.ratio_profile(diagnostic, drawing, labels, tuple(panels), word)
    return chart if charts.defined(chart) else None
