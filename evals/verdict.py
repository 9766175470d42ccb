"""The verdict: which findings an evaluation supports, which of them decide, and what to do about each.

Predictions decide where there are any: the score of ``evals.score`` follows the measured loss, while variance
and rank can leave their bands without harm (a scaled residual stream is normalised away) and stay within them
in a ruin. They say *where* and *why*. Without predictions (encoders, plain modules) they decide. Weights
alone screen: they never call a merge collapsed, unless values are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from merge_models.evals.schema import (
    Basis,
    Cause,
    Evaluation,
    Finding,
    SiteActivations,
    Status,
    TaskDiagnosis,
    Verdict,
    WeightDiagnosis,
)
from merge_models.evals.score import DomainScore, domain_scores, lost_share
from merge_models.evals.thresholds import CALIBRATION, DEFAULT

_ORDER: tuple[Status, ...] = ("healthy", "degraded", "collapsed")


def judge(evaluation: Evaluation) -> Verdict:
    """The verdict on what was measured; fields that are None are not held against the merge."""
    activations = evaluation.activations
    scores = domain_scores(activations, evaluation.parents) if activations else []
    decided = bool(scores)
    findings = [finding for rule in _RULES for finding in rule(evaluation, scores)]
    if decided:
        findings = [_as_explanation(f) if f.cause in _EXPLAINING else f for f in findings]
    status = worst(f.status for f in findings)
    findings.sort(key=lambda f: -_ORDER.index(f.status))
    by_skill: dict[str, Status] = {s.domain: _by_score(s.lost) for s in scores}
    by_skill |= _task_statuses(evaluation.tasks)
    return Verdict(
        status=status,
        score=lost_share(scores),
        basis=_basis(evaluation),
        summary=_summary(evaluation, status, scores, findings),
        findings=tuple(findings),
        by_skill=by_skill,
        by_layer=_layer_statuses(evaluation),
    )


def worst(statuses: Iterator[Status]) -> Status:
    """The worst of some statuses; healthy where there are none."""
    return _ORDER[max(map(_ORDER.index, statuses), default=0)]


def _by_score(lost: float) -> Status:
    if lost >= DEFAULT.collapsed:
        return "collapsed"
    return "degraded" if lost >= DEFAULT.degraded else "healthy"


def _basis(evaluation: Evaluation) -> Basis:
    if evaluation.activations is None:
        return "weights"
    return "activations and tasks" if evaluation.tasks else "activations"


def _as_explanation(finding: Finding) -> Finding:
    return finding.model_copy(update={"status": "healthy"})


def _summary(
    evaluation: Evaluation, status: Status, scores: Sequence[DomainScore], findings: Sequence[Finding]
) -> str:
    lost = lost_share(list(scores))
    deciding = [f.cause for f in findings if f.status == status and status != "healthy"]
    text = status if not deciding else f"{status}: {', '.join(dict.fromkeys(deciding))}"
    if lost is not None:
        text += f"; {lost:.0%} of what the best parent of each domain knows is lost"
    elif evaluation.activations is None:
        text += "; from weights alone, which screen and do not decide"
    explained = [f for f in findings if f.status != status and f.cause in _EXPLAINING]
    if explained and status != "healthy":
        text += "; seen as " + ", ".join(dict.fromkeys(f"{f.cause} in {f.where}" for f in explained))
    return text


# Rules. Each looks at one cause and yields findings.


def _not_finite(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    tensors = [t for t in evaluation.weights.tensors if not t.finite] if evaluation.weights else []
    sites = [s for s in evaluation.activations.sites if not s.merge.finite] if evaluation.activations else []
    if tensors:
        names = ", ".join(t.name for t in tensors[:3])
        yield Finding(
            cause="not finite",
            status="collapsed",
            where=names + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""),
            layers=_numbers(t.layer for t in tensors),
            evidence=f"{len(tensors)} tensors hold NaN or Inf",
            source="definition",
            remedy="merge again with --on-nonfinite error: it names the parent that brought the value",
        )
    if sites:
        yield Finding(
            cause="not finite",
            status="collapsed",
            where=_places(sites),
            layers=_numbers(s.layer for s in sites),
            evidence=f"activations are NaN or Inf from {sites[0].module} on",
            source="definition",
            remedy="if the weights are finite, values overflow: lower lambda, or evaluate in a wider dtype",
        )


def _divergence(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    lost = lost_share(list(scores))
    if lost is None or _by_score(lost) == "healthy":
        return
    bad = [s for s in scores if _by_score(s.lost) != "healthy"]
    worst_domain = max(scores, key=lambda s: s.lost)
    yield Finding(
        cause="divergence from all",
        status=_by_score(lost),
        where=", ".join(s.domain for s in bad),
        evidence=(
            f"{lost:.0%} of the parents' knowledge is lost; most in {worst_domain.domain}:"
            f" KL {worst_domain.kl:.3g} nats a token from {worst_domain.reference},"
            f" which saves {worst_domain.gain:.3g} over guessing by frequency"
        ),
        value=lost,
        threshold=DEFAULT.collapsed if _by_score(lost) == "collapsed" else DEFAULT.degraded,
        source=CALIBRATION,
        remedy=_divergence_remedy(evaluation),
    )


def _divergence_remedy(evaluation: Evaluation) -> str:
    weights = evaluation.weights
    cosines = _off_diagonal(weights)
    if evaluation.base is None and cosines and max(cosines) < 0.3:
        return (
            "the parents share no base (their weights are nearly orthogonal): no average of them works; merge"
            " models of one pre-training run, or align units first"
        )
    if weights and weights.delta_norm_ratio and weights.delta_norm_ratio > 1.0:
        factor = 1 / weights.delta_norm_ratio
        return f"deltas are added up too strongly: multiply lambda (or the weights) by about {factor:.2g}"
    return "merge fewer or nearer parents, or smaller deltas: ties or dare_ties with a lower lambda"


def _off_diagonal(weights: WeightDiagnosis | None) -> list[float]:
    if weights is None or weights.cosine is None:
        return []
    rows = weights.cosine
    pairs = [row[j] for i, row in enumerate(rows) for j in range(i)]
    return [c for c in pairs if c is not None]


def _parent_lost(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    """A skill that is lost while others are kept."""
    lost = [s for s in scores if _by_score(s.lost) == "collapsed"]
    kept = [s for s in scores if _by_score(s.lost) == "healthy"]
    for score in lost if kept else ():
        yield Finding(
            cause="parent lost",
            status="degraded",
            where=f"{score.reference} on {score.domain}",
            evidence=f"{score.lost:.0%} of what {score.reference} knows of {score.domain} is lost",
            value=score.lost,
            threshold=DEFAULT.collapsed,
            source=CALIBRATION,
            remedy=f"give {score.reference} more weight, or sparser deltas to all (ties, dare_ties)",
        )
    for recovery in evaluation.tasks.recovery if evaluation.tasks else ():
        if recovery.fraction is None or recovery.fraction >= DEFAULT.recovery_degraded:
            continue
        collapsed = recovery.fraction < DEFAULT.recovery_collapsed
        yield Finding(
            cause="parent lost",
            status="degraded",
            where=f"{recovery.best_parent} on {recovery.task}",
            evidence=f"keeps {recovery.fraction:.0%} of what {recovery.best_parent} gains over {recovery.reference}",
            value=recovery.fraction,
            threshold=DEFAULT.recovery_collapsed if collapsed else DEFAULT.recovery_degraded,
            source="convention: a fifth of the gain lost is worth knowing",
            remedy=f"give {recovery.best_parent} more weight, or sparser deltas to all (ties, dare_ties)",
        )


def _variance(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    low = _sites(
        evaluation, lambda s: s.variance_ratio and s.variance_ratio.value, below=DEFAULT.variance_low
    )
    if not low:
        return
    site, value = min(low, key=lambda pair: pair[1])
    yield Finding(
        cause="variance collapse",
        status="collapsed" if value < DEFAULT.variance_low**2 else "degraded",
        where=_places([s for s, _ in low]),
        layers=_numbers(s.layer for s, _ in low),
        evidence=f"variance is {value:.2f} of the parents' mean at {site.module}",
        value=value,
        threshold=DEFAULT.variance_low,
        source=CALIBRATION + "; the ratio is that of Jordan et al. 2023 (REPAIR)",
        remedy="merge-models repair resets the scales; or merge with karcher or norm_mean, which keep norms",
    )


def _rank(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    low = _sites(
        evaluation, lambda s: s.effective_rank_ratio and s.effective_rank_ratio.value, below=DEFAULT.rank_low
    )
    if not low:
        return
    site, value = min(low, key=lambda pair: pair[1])
    yield Finding(
        cause="rank collapse",
        status="collapsed" if value < DEFAULT.rank_low**3 else "degraded",
        where=_places([s for s, _ in low]),
        layers=_numbers(s.layer for s, _ in low),
        evidence=f"effective rank is {value:.2f} of the parents' mean at {site.module}",
        value=value,
        threshold=DEFAULT.rank_low,
        source=CALIBRATION + "; effective rank of Roy and Vetterli 2007",
        remedy="keep more of each delta (higher density), merge fewer parents, or copy these layers from one",
    )


def _norms(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    weights = evaluation.weights
    if weights is None:
        return
    checks: list[tuple[str, float | None, float, float]] = [
        ("weights", weights.norm_ratio, DEFAULT.norm_low, DEFAULT.norm_high),
        ("deltas", weights.delta_norm_ratio, DEFAULT.delta_norm_low, DEFAULT.delta_norm_high),
    ]
    for what, ratio, low, high in checks:
        if ratio is None or low <= ratio <= high:
            continue
        shrunk = ratio < low
        cause: Cause = "norm shrinkage" if shrunk else "norm blow-up"
        yield Finding(
            cause=cause,
            status="degraded",
            where=f"the {what}",
            evidence=f"norm is {ratio:.3g} of the parents' mean norm",
            value=ratio,
            threshold=low if shrunk else high,
            source=f"a mean of N unrelated {what} keeps 1/sqrt(N) of the norm",
            remedy=_norm_remedy(shrunk, what, ratio),
        )


def _norm_remedy(shrunk: bool, what: str, ratio: float) -> str:
    if not shrunk:
        return f"lower lambda or the weights by {1 / ratio:.2g}"
    if what == "deltas":
        return f"-m norm_mean or karcher with --set origin=base, or lambda {1 / ratio:.2g} times as large"
    return "-m norm_mean or karcher: they keep the parents' norm"


def _text(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    rows = evaluation.tasks.generation if evaluation.tasks else ()
    merge = next((g for g in rows if g.model == evaluation.merge.name), None)
    others = [g for g in rows if g.model in {p.name for p in evaluation.parents}]
    if merge is None or not others:
        return
    for what, share in (("empty", "empty"), ("looping", "looping"), ("low distinct-2", "low_distinct")):
        own, theirs = getattr(merge, share), max(getattr(g, share) for g in others)
        if own - theirs < DEFAULT.looping:
            continue
        yield Finding(
            cause="degenerate text",
            status="collapsed" if own - theirs > 0.5 else "degraded",
            where="generated text",
            evidence=f"{own:.0%} of the continuations are {what}; of the worst parent's {theirs:.0%}",
            value=own - theirs,
            threshold=DEFAULT.looping,
            source="convention: one continuation in five",
            remedy="look at the samples; check chat template and tokenizer, then lower lambda",
        )


def _mixture(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    """Remarks on how the parents share the merge; they matter only when something else is wrong."""
    weights, n = evaluation.weights, len(evaluation.parents)
    if weights is None or weights.effective_parents is None or n < 2:
        return
    harmed = any(_by_score(s.lost) != "healthy" for s in scores)
    status: Status = "degraded" if harmed else "healthy"
    effective = weights.effective_parents
    faded = weights.delta_norm_ratio is not None and weights.delta_norm_ratio < DEFAULT.delta_norm_low
    if effective < DEFAULT.dominance:
        yield Finding(
            cause="single-parent dominance",
            status="healthy",
            where="the weights",
            evidence=f"the result holds {effective:.2f} parents of {n} (exp of the entropy of the shares)",
            value=effective,
            threshold=DEFAULT.dominance,
            source="definition: nearly all of the mixture is one parent",
            remedy="raise the other parents' weights if they are wanted",
        )
    elif n >= 4 and faded and effective > 0.75 * n:
        yield Finding(
            cause="muddled middle",
            status=status,
            where="the deltas",
            evidence=(
                f"{effective:.1f} of {n} parents share alike;"
                f" {weights.delta_norm_ratio:.2f} of the deltas' norm is left"
            ),
            value=weights.delta_norm_ratio,
            threshold=DEFAULT.delta_norm_low,
            source="a mean of N unrelated deltas keeps 1/sqrt(N) of their norm",
            remedy="merge fewer parents, ties with lambda 1, or norm_mean with --set origin=base",
        )


def _drift(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    """Divergence from all parents where there are no predictions to compare."""
    if scores or evaluation.activations is None or evaluation.activations.head is not None:
        return
    far = _sites(evaluation, lambda s: _nearest(s), above=DEFAULT.drift_high)
    if not far:
        return
    site, value = max(far, key=lambda pair: pair[1])
    yield Finding(
        cause="divergence from all",
        status="collapsed" if value > 1.6 * DEFAULT.drift_high else "degraded",
        where=_places([s for s, _ in far]),
        layers=_numbers(s.layer for s, _ in far),
        evidence=f"activations are {value:.2f} of their norm away from the nearest parent's at {site.module}",
        value=value,
        threshold=DEFAULT.drift_high,
        source=CALIBRATION,
        remedy=_divergence_remedy(evaluation),
    )


def _nearest(site: SiteActivations) -> float | None:
    known = [d for d in site.drift if d is not None]
    return min(known) if known and site.site in ("residual", "embedding") else None


_Rule = Callable[[Evaluation, Sequence[DomainScore]], Iterator[Finding]]
_RULES: tuple[_Rule, ...] = (
    _not_finite,
    _divergence,
    _drift,
    _parent_lost,
    _text,
    _variance,
    _rank,
    _norms,
    _mixture,
)
_EXPLAINING: tuple[Cause, ...] = ("variance collapse", "rank collapse", "norm shrinkage", "norm blow-up")


# Where


def _sites(
    evaluation: Evaluation,
    value: Callable[[SiteActivations], float | None],
    *,
    below: float = -math.inf,
    above: float = math.inf,
) -> list[tuple[SiteActivations, float]]:
    """Sites whose value leaves the band."""
    found = []
    for site in evaluation.activations.sites if evaluation.activations else ():
        number = value(site)
        if number is not None and (number < below or number > above):
            found.append((site, number))
    return found


def _variance_ratio(site: SiteActivations) -> float | None:
    return site.variance_ratio.value if site.variance_ratio else None


def _rank_ratio(site: SiteActivations) -> float | None:
    return site.effective_rank_ratio.value if site.effective_rank_ratio else None


def _numbers(layers: Iterator[int | None]) -> tuple[int, ...]:
    return tuple(sorted({layer for layer in layers if layer is not None}))


def _places(sites: Sequence[SiteActivations]) -> str:
    """``layers 2-5, 7 (mlp, residual)``."""
    numbers = _numbers(s.layer for s in sites)
    kinds = ", ".join(sorted({s.site for s in sites}))
    if not numbers:
        return kinds
    return f"layer{'s' if len(numbers) > 1 else ''} {_ranges(numbers)} ({kinds})"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


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
    variance = site.variance_ratio.value if site.variance_ratio else 1.0
    rank = site.effective_rank_ratio.value if site.effective_rank_ratio else 1.0
    if variance < DEFAULT.variance_low**2 or rank < DEFAULT.rank_low**3:
        return "collapsed"
    inside = DEFAULT.variance_low <= variance <= DEFAULT.variance_high and rank >= DEFAULT.rank_low
    return "healthy" if inside else "degraded"


def _task_statuses(tasks: TaskDiagnosis | None) -> dict[str, Status]:
    statuses: dict[str, Status] = {}
    for recovery in tasks.recovery if tasks else ():
        if recovery.fraction is not None:
            if recovery.fraction < DEFAULT.recovery_collapsed:
                statuses[recovery.task] = "collapsed"
            else:
                kept = recovery.fraction >= DEFAULT.recovery_degraded
                statuses[recovery.task] = "healthy" if kept else "degraded"
    return statuses
