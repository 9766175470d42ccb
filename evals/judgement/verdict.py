"""The verdict: which findings an evaluation supports, which of them decide, and what to do about each.

Predictions decide where there are any: the score of ``evals.score`` follows the measured loss, while variance
and rank can leave their bands without harm (a scaled residual stream is normalised away) and stay within them
in a ruin. They say *where* and *why*. Without predictions (encoders, plain modules) the drift from the
parents decides, and they where they are far out of their bands. Weights alone screen: they never call a merge
collapsed, unless values are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from merge_models.evals.judgement.rules import EXPLAINING, RULES, gone
from merge_models.evals.judgement.score import DomainScore, domain_scores, drift_score, lost_share, status_of
from merge_models.evals.judgement.sites import rank_ratio, variance_ratio
from merge_models.evals.judgement.skills import is_compared, kept_skills, status_of_skill
from merge_models.evals.judgement.thresholds import DEFAULT
from merge_models.evals.schema import (
    Basis,
    Evaluation,
    Finding,
    Head,
    Outcome,
    SiteActivations,
    Status,
    Verdict,
    WeightDiagnosis,
)

TOO_FEW_LAYERS = (
    "not judged: most weights of the merge's layers could not be compared with its parents' (a report says"
    " why); measure activations too (leave out --weights-only)"
)
NOT_JUDGED = (
    "not judged: no layer of the merge could be compared with its parents', and they do not know the text;"
    " give text that they are made for (--data, text=), or questions that they answer (--tasks)"
)
_ORDER: tuple[Status, ...] = ("healthy", "degraded", "collapsed")


def judge(evaluation: Evaluation) -> Verdict:
    """Returns the verdict on what was measured; fields that are None are not held against the merge."""
    activations = evaluation.activations
    scores = domain_scores(activations, evaluation.parents) if activations else []
    decided = bool(scores)
    findings = [
        f if _decides(f, evaluation, decided=decided) else f.model_copy(update={"status": "healthy"})
        for rule in RULES
        for f in rule(evaluation, scores)
    ]
    findings.sort(key=lambda f: -_ORDER.index(f.status))
    by_skill: dict[str, Status] = {s.domain: status_of(s.lost) for s in scores}
    by_skill |= _task_statuses(evaluation)
    status: Outcome = worst(f.status for f in findings)
    if status == "healthy" and not _is_judged(evaluation, by_skill):
        status = "not judged"
    score = lost_share(scores) if decided else drift_score(evaluation)
    kind = "lost share" if decided else "drift"
    return Verdict(
        status=status,
        score=score,
        score_kind=kind if score is not None else None,
        basis=_basis(evaluation),
        summary=_summary(evaluation, status, scores, findings),
        findings=tuple(findings),
        by_skill=by_skill,
        by_layer=_layer_statuses(evaluation),
    )


def judged(evaluation: Evaluation) -> Evaluation:
    """Returns the evaluation with its verdict, made from what the evaluation holds."""
    notes = tuple(dict.fromkeys((*evaluation.notes, *foreign_text(evaluation))))
    return evaluation.model_copy(update={"verdict": judge(evaluation), "notes": notes})


def foreign_text(evaluation: Evaluation) -> Iterator[str]:
    """Returns a note on the domains of the calibration text that no parent knows; they are left out of the
    score."""
    activations = evaluation.activations
    if activations is None or activations.head is None:
        return
    known = {score.domain for score in domain_scores(activations, evaluation.parents)}
    foreign = [d for d in activations.calibration.unigram_entropy if d not in known]
    if foreign:
        yield (
            f"calibration text foreign to all parents and left out of the score: {', '.join(foreign)};"
            " pass text that the models are made for (--data, text=)"
        )
        yield from _guessing(evaluation, activations.head, foreign)


def _guessing(evaluation: Evaluation, head: Head, foreign: Sequence[str]) -> Iterator[str]:
    """What the merge itself makes of text that no parent knows, where that is no better than guessing."""
    entropy = evaluation.activations.calibration.unigram_entropy if evaluation.activations else {}
    own = head.loss_by_domain.get(evaluation.merge.name, {})
    bad = {d: own[d] - entropy[d] for d in foreign if d in own and own[d] >= entropy[d]}
    if bad:
        most = max(bad, key=lambda domain: bad[domain])
        parents = [head.loss_by_domain.get(p.name, {}).get(most) for p in evaluation.parents]
        best = min((loss for loss in parents if loss is not None), default=None)
        yield (
            f"the merge's own loss there is no better than guessing by frequency: {', '.join(bad)}; most in"
            f" {most}, {own[most]:.3g} nats a token where guessing costs {entropy[most]:.3g}"
            + (f" and the best parent {best:.3g}" if best is not None else "")
        )


def worst(statuses: Iterator[Status]) -> Status:
    """Returns the worst of some statuses; healthy where there are none."""
    return _ORDER[max(map(_ORDER.index, statuses), default=0)]


def _basis(evaluation: Evaluation) -> Basis:
    if evaluation.activations is None:
        return "weights"
    return "activations and tasks" if evaluation.tasks else "activations"


def _decides(finding: Finding, evaluation: Evaluation, *, decided: bool) -> bool:
    """Whether a finding counts, or only explains what better evidence has decided."""
    if finding.cause not in EXPLAINING or evaluation.activations is None:
        return True
    if decided:
        return False
    if finding.cause in ("norm shrinkage", "norm blow-up"):
        return gone(finding)
    return finding.status == "collapsed"  # near their bands, variance and rank leave them without harm


def _summary(
    evaluation: Evaluation, status: Outcome, scores: Sequence[DomainScore], findings: Sequence[Finding]
) -> str:
    if status == "not judged":
        return TOO_FEW_LAYERS if evaluation.activations is None and evaluation.weights else NOT_JUDGED
    lost = lost_share(list(scores))
    deciding = [f.cause for f in findings if f.status == status and status != "healthy"]
    text = status if not deciding else f"{status}: {', '.join(dict.fromkeys(deciding))}"
    if lost is not None:
        text += f"; {lost:.0%} of what the best parent of each domain knows is lost"
    elif evaluation.activations is not None and not is_compared(evaluation):
        by_answers = bool(kept_skills(evaluation))
        text += f"; judged by {'answers to the tasks' if by_answers else 'what the findings say'} alone"
    elif evaluation.activations is None:
        text += "; from weights alone, which screen and do not decide"
    else:
        drift = drift_score(evaluation)
        known = f" ({drift:.2f} of their norm)" if drift is not None else ""
        text += f"; judged by the distance from the parents' activations{known}, for want of predictions"
    explained = [f for f in findings if f.status != status and f.cause in EXPLAINING]
    if explained and status != "healthy":
        text += "; seen as " + ", ".join(dict.fromkeys(f"{f.cause} in {f.where}" for f in explained))
    return text


def _layer_statuses(evaluation: Evaluation) -> dict[int, Status]:
    """Healthy where variance and rank stay in their bands; degraded where one leaves; collapsed where far."""
    statuses: dict[int, Status] = {}
    for site in evaluation.activations.sites if evaluation.activations else ():
        if site.layer is not None:
            known = statuses.get(site.layer, "healthy")
            statuses[site.layer] = worst(iter((known, _site_status(site))))
    return statuses


def _site_status(site: SiteActivations) -> Status:
    if not site.merge.finite:
        return "collapsed"
    variance, rank = (1.0 if r is None else r for r in (variance_ratio(site), rank_ratio(site)))
    if variance < DEFAULT.variance_low**2 or rank < DEFAULT.rank_low**3:
        return "collapsed"
    inside = DEFAULT.variance_low <= variance <= DEFAULT.variance_high and rank >= DEFAULT.rank_low
    return "healthy" if inside else "degraded"


def _task_statuses(evaluation: Evaluation) -> dict[str, Status]:
    told = {r.task: r.fraction for r in kept_skills(evaluation)}
    return {task: status_of_skill(fraction) for task, fraction in told.items() if fraction is not None}


def _is_judged(evaluation: Evaluation, by_skill: Mapping[str, Status]) -> bool:
    """Whether anything was measured that could have told a ruin."""
    if by_skill or is_compared(evaluation):
        return True
    weights = evaluation.weights
    if evaluation.activations is not None or weights is None:
        return False
    compared = any(
        r is not None for r in (weights.norm_ratio, weights.delta_norm_ratio, weights.effective_parents)
    )
    return compared and _are_layers_compared(weights)


def _are_layers_compared(weights: WeightDiagnosis) -> bool:
    """Whether most elements of the merge's layers (of all it has, without layers) have counterparts."""
    layers = [t for t in weights.tensors if t.layer is not None] or list(weights.tensors)
    sizes = [(math.prod(t.shape), t.norm_ratio is not None) for t in layers]
    return 2 * sum(size for size, compared in sizes if compared) >= sum(size for size, _ in sizes)
