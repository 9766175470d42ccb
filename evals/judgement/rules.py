"""The rules of the verdict: each looks for one cause and yields what it found, with evidence and remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from merge_models.evals.judgement.score import DomainScore, lost_share, mean_drift, status_of
from merge_models.evals.judgement.sites import leaving, numbers, places, rank_ratio, variance_ratio
from merge_models.evals.judgement.skills import NOTHING, is_compared, kept_skills, status_of_skill
from merge_models.evals.judgement.thresholds import CALIBRATION, DEFAULT
from merge_models.evals.schema import (
    Cause,
    Evaluation,
    Finding,
    SiteActivations,
    Status,
    WeightDiagnosis,
)
from merge_models.merge.errors import counted


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
            layers=numbers(t.layer for t in tensors),
            evidence=f"NaN or Inf in {counted(len(tensors), 'tensor')}",
            source="definition",
            remedy="merge again with --on-nonfinite error: it names the parent that brought the value",
        )
    if sites:
        yield Finding(
            cause="not finite",
            status="collapsed",
            where=places(sites),
            layers=numbers(s.layer for s in sites),
            evidence=f"activations are NaN or Inf from {sites[0].module} on",
            source="definition",
            remedy=(
                "mend the weights first: they hold NaN or Inf"
                if tensors
                else "if the weights are finite, values overflow: lower lambda, or evaluate in a wider dtype"
            ),
        )


def _divergence(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    lost = lost_share(list(scores))
    if lost is None or status_of(lost) == "healthy":
        return
    bad = [s for s in scores if status_of(s.lost) != "healthy"]
    worst_domain = max(scores, key=lambda s: s.lost)
    yield Finding(
        cause="divergence from all",
        status=status_of(lost),
        where=", ".join(s.domain for s in bad),
        evidence=(
            f"{lost:.0%} of the parents' knowledge is lost; most in {worst_domain.domain}:"
            f" KL {worst_domain.kl:.3g} nats a token from {worst_domain.reference},"
            f" which saves {worst_domain.gain:.3g} over guessing by frequency"
        ),
        value=lost,
        threshold=DEFAULT.collapsed if status_of(lost) == "collapsed" else DEFAULT.degraded,
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
    outside = weights.unexplained if weights and evaluation.base else None
    if outside is not None and outside > DEFAULT.foreign_delta:
        return (
            f"{outside:.0%} of the change from the base is none of the parents', as after thinning: raise the"
            " density"
        )
    if _are_too_long(weights):
        assert weights is not None and weights.delta_norm_ratio is not None
        factor = 1 / weights.delta_norm_ratio
        return f"deltas are added up too strongly: multiply lambda (or the weights) by about {factor:.2g}"
    if weights and weights.norm_ratio is not None and weights.norm_ratio > DEFAULT.norm_high:
        return _norm_remedy(False, "weights", weights.norm_ratio)
    if len(evaluation.parents) == 1:
        return (
            "one parent and no norm that explains it: see in the report which layers differ, and whether this"
            " is the merge's parent"
        )
    return (
        "no norm explains it: merge the parents in pairs to find which of them do not fit, or stay nearer to"
        " the best one (more weight to it)"
    )


def _are_too_long(weights: WeightDiagnosis | None) -> bool:
    ratio = weights.delta_norm_ratio if weights else None
    return ratio is not None and ratio > DEFAULT.delta_norm_high


def _off_diagonal(weights: WeightDiagnosis | None) -> list[float]:
    if weights is None or weights.cosine is None:
        return []
    rows = weights.cosine
    pairs = [row[j] for i, row in enumerate(rows) for j in range(i)]
    return [c for c in pairs if c is not None]


def _parent_lost(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    """A skill that is lost while others are kept."""
    lost = [s for s in scores if status_of(s.lost) == "collapsed"]
    kept = [s for s in scores if status_of(s.lost) == "healthy"]
    for score in lost if kept else ():
        yield Finding(
            cause="parent lost",
            status="degraded",
            where=f"{score.reference} on {score.domain}",
            evidence=f"{score.lost:.0%} of what {score.reference} knows of {score.domain} is lost",
            value=score.lost,
            threshold=DEFAULT.collapsed,
            source=CALIBRATION,
            remedy=_skill_remedy(evaluation, score.reference),
        )
    yield from _lost_skills(evaluation)


def _lost_skills(evaluation: Evaluation) -> Iterator[Finding]:
    """The tasks that the merge answers worse than their best parent; a collapse if nothing else is compared
    and all are lost."""
    told = [(r, r.fraction) for r in kept_skills(evaluation) if r.fraction is not None]
    ruined = not is_compared(evaluation) and all(
        status_of_skill(fraction) == "collapsed" for _, fraction in told
    )
    for recovery, fraction in told:
        status = status_of_skill(fraction)
        if status == "healthy":
            continue
        over = "answers" if recovery.reference == NOTHING else f"gains over {recovery.reference}"
        yield Finding(
            cause="parent lost",
            status="collapsed" if ruined else "degraded",
            where=f"{recovery.best_parent} on {recovery.task}",
            evidence=f"keeps {fraction:.0%} of what {recovery.best_parent} {over}",
            value=fraction,
            threshold=DEFAULT.recovery_collapsed if status == "collapsed" else DEFAULT.recovery_degraded,
            source="convention: a fifth of the gain lost is worth knowing",
            remedy=_skill_remedy(evaluation, recovery.best_parent),
        )


def _skill_remedy(evaluation: Evaluation, parent: str) -> str:
    if len(evaluation.parents) == 1:
        return "the only parent can do it: see which layers the merge has otherwise, or train it further"
    return f"give {parent} more weight, or sparser deltas to all (ties, dare_ties)"


def _variance(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    yield from _collapse(
        evaluation,
        variance_ratio,
        cause="variance collapse",
        what="variance",
        threshold=DEFAULT.variance_low,
        ruin=DEFAULT.variance_low**2,
        source="the ratio is that of Jordan et al. 2023 (REPAIR)",
        remedy="merge-models repair resets the scales; or merge with karcher or norm_mean, which keep norms",
    )


def _rank(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    del scores
    yield from _collapse(
        evaluation,
        rank_ratio,
        cause="rank collapse",
        what="effective rank",
        threshold=DEFAULT.rank_low,
        ruin=DEFAULT.rank_low**3,
        source="effective rank of Roy and Vetterli 2007",
        remedy=(
            "lower lambda: the deltas are too long"
            if _are_too_long(evaluation.weights)
            else "keep more of each delta (higher density), merge fewer parents, or copy layers from one"
        ),
    )


def _collapse(
    evaluation: Evaluation,
    ratio: Callable[[SiteActivations], float | None],
    *,
    cause: Cause,
    what: str,
    threshold: float,
    ruin: float,
    source: str,
    remedy: str,
) -> Iterator[Finding]:
    """A ratio to the parents that fell under its threshold at some sites; under ``ruin`` it is a collapse."""
    low = leaving(evaluation, ratio, below=threshold)
    if not low:
        return
    site, value = min(low, key=lambda pair: pair[1])
    yield Finding(
        cause=cause,
        status="collapsed" if value < ruin else "degraded",
        where=places([s for s, _ in low]),
        layers=numbers(s.layer for s, _ in low),
        evidence=f"{what} is {value:.2f} of the parents' mean at {site.module}",
        value=value,
        threshold=threshold,
        source=f"{CALIBRATION}; {source}",
        remedy=remedy,
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
    if what == "weights":
        if shrunk:
            return "-m norm_mean or karcher: they keep the parents' norm"
        return "let the weights sum to 1 (normalize: true); for task vectors, lower lambda"
    if not shrunk:
        return f"multiply lambda (or the weights) by about {1 / ratio:.2g}"
    if ratio < DEFAULT.delta_norm_gone:
        return "the merge is the base, or as good as: see whether weights, lambda and density are as meant"
    return (
        f"-m norm_mean or karcher with --set origin=base, or lambda (the weights) {1 / ratio:.2g} times as"
        " large"
    )


def gone(finding: Finding) -> bool:
    """Returns whether it says that nothing is left of the deltas: such a merge is the base, however near that
    is."""
    deltas = finding.cause == "norm shrinkage" and finding.where == "the deltas"
    return deltas and finding.value is not None and finding.value < DEFAULT.delta_norm_gone


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
            remedy="look at the samples; check chat template and tokenizer"
            + (", then lower lambda" if _are_too_long(evaluation.weights) else ""),
        )


def _mixture(evaluation: Evaluation, scores: Sequence[DomainScore]) -> Iterator[Finding]:
    """Remarks on how the parents share the merge; they matter only when something else is wrong."""
    weights, n = evaluation.weights, len(evaluation.parents)
    if weights is None or weights.effective_parents is None or n < 2:
        return
    harmed = any(status_of(s.lost) != "healthy" for s in scores)
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
    if scores or evaluation.activations is None:
        return
    far = leaving(evaluation, lambda s: mean_drift(s, evaluation.parents), above=DEFAULT.drift_degraded)
    if not far:
        return
    site, value = max(far, key=lambda pair: pair[1])
    collapsed = value >= DEFAULT.drift_collapsed
    yield Finding(
        cause="divergence from all",
        status="collapsed" if collapsed else "degraded",
        where=places([s for s, _ in far]),
        layers=numbers(s.layer for s, _ in far),
        evidence=f"activations are {value:.2f} of their norm away from the parents' at {site.module}",
        value=value,
        threshold=DEFAULT.drift_collapsed if collapsed else DEFAULT.drift_degraded,
        source=CALIBRATION,
        remedy=_divergence_remedy(evaluation),
    )


Rule = Callable[[Evaluation, Sequence[DomainScore]], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
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
EXPLAINING: tuple[Cause, ...] = ("variance collapse", "rank collapse", "norm shrinkage", "norm blow-up")
