"""The few figures that a reader sees first, and what an evaluation lacks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from merge_models.evals.report.numbers import count, interval, number, percent
from merge_models.evals.schema import Estimate, Evaluation, Outcome, SiteActivations, TaskDiagnosis, Verdict

STATUS_WORDS: dict[Outcome, str] = {
    "healthy": "Healthy",
    "degraded": "Degraded",
    "collapsed": "Collapsed",
    "not judged": "Not judged",
}
STATUS_MARKS: dict[Outcome, str] = {"healthy": "✓", "degraded": "▲", "collapsed": "✕", "not judged": "?"}
SEVERITY: dict[Outcome, int] = {"healthy": 0, "degraded": 1, "collapsed": 2, "not judged": 3}


class Fact(NamedTuple):
    """A figure with what it is and where it was found."""

    label: str
    value: str
    note: str = ""


def furthest(sites: Iterable[SiteActivations], field: str) -> tuple[SiteActivations, Estimate] | None:
    """Returns the site whose ratio is furthest from 1, by a factor: variance can shrink and blow up."""
    pairs = [(site, e) for site in sites if (e := getattr(site, field)) is not None]
    return max(pairs, key=lambda pair: _factor(pair[1].value)) if pairs else None


def _factor(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def lowest(sites: Iterable[SiteActivations], field: str) -> tuple[SiteActivations, Estimate] | None:
    """Returns the site with the smallest ratio."""
    pairs = [(site, e) for site in sites if (e := getattr(site, field)) is not None]
    return min(pairs, key=lambda pair: pair[1].value) if pairs else None


def place(site: SiteActivations) -> str:
    """Returns where a site is: ``layer 5, mlp``."""
    words = {"mlp": "MLP"}.get(site.site, site.site)
    return f"layer {site.layer}, {words}" if site.layer is not None else site.module


def facts(evaluation: Evaluation) -> list[Fact]:
    """Returns key figures in the order in which they decide."""
    score = evaluation.verdict.score if evaluation.verdict else None
    by_drift = evaluation.verdict is not None and evaluation.verdict.score_kind == "drift"
    name = "Score (drift)" if by_drift else "Score (lost share)"
    damage = [Fact(name, number(score), "0 is as the parents; merges rank by it")]
    return [
        *(damage if score is not None else []),
        *_activation_facts(evaluation),
        *_task_facts(evaluation),
        *_weight_facts(evaluation),
    ]


def _activation_facts(evaluation: Evaluation) -> list[Fact]:
    activations = evaluation.activations
    if activations is None:
        return []
    told = []
    for worst, label in (
        (furthest(activations.sites, "variance_ratio"), "Variance ratio furthest from 1"),
        (lowest(activations.sites, "effective_rank_ratio"), "Lowest effective-rank ratio"),
    ):
        if worst:
            told.append(
                Fact(label, number(worst[1].value), f"{place(worst[0])} {interval(worst[1])}".strip())
            )
    divergence = nearest_parent(evaluation)
    if divergence:
        told.append(Fact("KL to the nearest parent", number(divergence[1].value), f"{divergence[0]}, nats"))
    gap = loss_gap(evaluation)
    if gap is not None:
        told.append(Fact("Loss above the best parent", number(gap), "nats a token, calibration text"))
    return told


def nearest_parent(evaluation: Evaluation) -> tuple[str, Estimate] | None:
    """Returns the parent whose predictions the merge's are closest to, by KL."""
    head = evaluation.activations.head if evaluation.activations else None
    parents = {parent.name for parent in evaluation.parents}
    divergences = [(d.model, d.kl) for d in head.divergences if d.model in parents] if head else []
    return min(divergences, key=lambda pair: pair[1].value) if divergences else None


def loss_gap(evaluation: Evaluation) -> float | None:
    """Returns the merge's calibration loss less the best parent's, nats."""
    head = evaluation.activations.head if evaluation.activations else None
    if head is None or evaluation.merge.name not in head.loss:
        return None
    losses = [head.loss[parent.name].value for parent in evaluation.parents if parent.name in head.loss]
    return head.loss[evaluation.merge.name].value - min(losses) if losses else None


def conclusion(verdict: Verdict) -> str:
    """Returns the summary without the status that stands beside it, as a sentence; empty when it says no
    more."""
    rest = verdict.summary.removeprefix(verdict.status).lstrip(":; ")
    return rest[:1].upper() + rest[1:]


def degenerate_share(tasks: TaskDiagnosis, model: str) -> float | None:
    """Returns the largest of the shares of empty, looping and poor continuations of one model."""
    return next((max(g.empty, g.looping, g.low_distinct) for g in tasks.generation if g.model == model), None)


def _task_facts(evaluation: Evaluation) -> list[Fact]:
    tasks = evaluation.tasks
    if tasks is None:
        return []
    told = []
    if tasks.least_recovery is not None:
        mean = f", mean {percent(tasks.mean_recovery)}" if tasks.mean_recovery is not None else ""
        told.append(
            Fact(
                "Least skill recovered", percent(tasks.least_recovery), f"{tasks.least_recovered or ''}{mean}"
            )
        )
    share = degenerate_share(tasks, evaluation.merge.name)
    if share is not None:
        told.append(Fact("Degenerate text", percent(share), "of greedy continuations"))
    return told


def _weight_facts(evaluation: Evaluation) -> list[Fact]:
    weights = evaluation.weights
    if weights is None:
        return []
    told = []
    if weights.delta_norm_ratio is not None:
        told.append(Fact("Delta norm", number(weights.delta_norm_ratio), "of the parents' mean delta"))
    elif weights.norm_ratio is not None:
        told.append(Fact("Weight norm", number(weights.norm_ratio), "of the parents' mean"))
    if weights.effective_parents is not None:
        told.append(
            Fact("Effective parents", number(weights.effective_parents), f"of {len(evaluation.parents)}")
        )
    if weights.sign_conflict is not None:
        told.append(Fact("Sign conflict", percent(weights.sign_conflict), "of the shared coordinates"))
    return told


def missing(evaluation: Evaluation) -> list[str]:
    """Returns sentences on what was not measured."""
    told = []
    for part, name in (
        (evaluation.verdict, "a verdict"),
        (evaluation.weights, "weights"),
        (evaluation.activations, "activations and predictions"),
        (evaluation.information, "O-information"),
        (evaluation.tasks, "tasks"),
    ):
        if part is None:
            told.append(f"Not measured: {name}.")
    if evaluation.activations is not None and evaluation.activations.head is None:
        told.append("Not measured: predictions (the models have no language-model head).")
    if evaluation.weights is not None:
        told += evaluation.weights.problems
    return told


def refusals(evaluation: Evaluation) -> list[str]:
    """Returns why an O-information was refused, each reason once."""
    information = evaluation.information
    if information is None:
        return []
    systems = [*information.between, *(o for row in information.within.values() for o in row)]
    return list(dict.fromkeys(o.refused for o in systems if o.refused))


def not_finite(evaluation: Evaluation) -> list[str]:
    """Returns tensors and sites of the merge with NaN or Inf."""
    tensors = [t.name for t in evaluation.weights.tensors if not t.finite] if evaluation.weights else []
    sites = (
        [place(s) for s in evaluation.activations.sites if not s.merge.finite]
        if evaluation.activations
        else []
    )
    return [*tensors, *sites]


def model_counts(evaluation: Evaluation) -> str:
    """Returns how many relatives there are: ``2 parents and a base``."""
    words = count(len(evaluation.parents), "parent")
    return words + (" and a base" if evaluation.base else "")
