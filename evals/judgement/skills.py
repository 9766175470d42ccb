"""What tasks say of a merge: how much of the best parent's skill is left, where that can be known."""

from __future__ import annotations

from merge_models.evals.judgement.score import domain_scores, drift_score
from merge_models.evals.judgement.thresholds import DEFAULT
from merge_models.evals.schema import Evaluation, Recovery, Status, TaskScore

NOTHING = "no answers"
"""The reference of what is kept where there is no base."""

_EXACT = "exact match"


def kept_skills(evaluation: Evaluation) -> list[Recovery]:
    """Returns the recoveries that tell a loss: those against the base.

    Without one, an average of experts loses much of each and may still be what was wanted, so the worst
    parent is no reference. Only where nothing but answers can be compared (another depth, text that no parent
    knows), exact ones count against the best parent's: they hardly ever come right by chance.
    """
    tasks, base = evaluation.tasks, evaluation.base
    if tasks is None:
        return []
    if base is not None:
        return [r for r in tasks.recovery if r.reference == base.name]
    return [] if is_compared(evaluation) else _exact_answers(evaluation)


def is_compared(evaluation: Evaluation) -> bool:
    """Returns whether predictions, residual streams or at least modules of merge and parents could be
    compared."""
    activations = evaluation.activations
    if activations is None:
        return False
    inner = (s for s in activations.sites if s.site != "embedding" and s.variance_ratio is not None)
    scored = domain_scores(activations, evaluation.parents)
    return bool(scored) or drift_score(evaluation) is not None or any(inner)


def status_of_skill(fraction: float) -> Status:
    """Returns what a kept fraction of a skill means."""
    if fraction < DEFAULT.recovery_collapsed:
        return "collapsed"
    return "degraded" if fraction < DEFAULT.recovery_degraded else "healthy"


def _exact_answers(evaluation: Evaluation) -> list[Recovery]:
    """What is kept of each task that some parent answers, beyond chance, better than not at all."""
    scores = evaluation.tasks.scores if evaluation.tasks else ()
    found: dict[str, dict[str, TaskScore]] = {}
    for score in scores:
        if score.metric == _EXACT:
            found.setdefault(score.task, {})[score.model] = score
    kept = []
    for task, by_model in found.items():
        parents = [by_model[p.name] for p in evaluation.parents if p.name in by_model]
        merge = by_model.get(evaluation.merge.name)
        best = max(parents, key=lambda score: score.score.value, default=None)
        if merge is None or best is None or (best.score.low or 0.0) <= DEFAULT.answers_least:
            continue
        fraction = merge.score.value / best.score.value
        kept.append(
            Recovery(task=task, metric=_EXACT, best_parent=best.model, reference=NOTHING, fraction=fraction)
        )
    return kept
