"""One number by which merges rank: the share of what the parents know that the merge has lost.

On each domain of the calibration text the reference is the parent with the lowest loss there, and what it
knows is what it
saves over guessing by frequency: ``gain = H(unigrams) - loss(reference)``, in nats a token. The merge's
divergence from that parent, ``KL(reference || merge)``, estimates the loss that the merge adds where the
reference is right. Their ratio, meaned over the domains, is 0 for a merge that predicts as the best parent
does, 1 for one that lost as much as there was to know, and larger for one that is confidently wrong. Domains
that no parent knows are left out: there, differences between predictions say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merge_models.evals.judgement.thresholds import DEFAULT
from merge_models.evals.schema import ActivationDiagnosis, Evaluation, Head, ModelRef, SiteActivations, Status


@dataclass(frozen=True)
class DomainScore:
    """One domain's score: ``lost`` = ``kl`` / ``gain`` against ``reference``, the parent that knows it
    best."""

    domain: str
    reference: str
    kl: float
    gain: float

    @property
    def lost(self) -> float:
        return self.kl / self.gain


def domain_scores(activations: ActivationDiagnosis, parents: tuple[ModelRef, ...]) -> list[DomainScore]:
    """Returns the scores of the domains that some parent knows; none for models without predictions."""
    head = activations.head
    if head is None:
        return []
    scores = []
    for domain, entropy in activations.calibration.unigram_entropy.items():
        reference = _reference(head, parents, domain)
        if reference is None:
            continue
        gain = entropy - head.loss_by_domain[reference][domain]
        kl = _kl(head, reference, domain)
        if kl is not None and gain > DEFAULT.foreign * entropy:
            scores.append(DomainScore(domain, reference, kl, gain))
    return scores


def _reference(head: Head, parents: tuple[ModelRef, ...], domain: str) -> str | None:
    losses = {p.name: head.loss_by_domain.get(p.name, {}).get(domain) for p in parents}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    return min(known, key=lambda name: known[name]) if known else None


def _kl(head: Head, reference: str, domain: str) -> float | None:
    for divergence in head.divergences:
        if divergence.model == reference:
            return divergence.kl_by_domain.get(domain)
    return None


def lost_share(scores: list[DomainScore]) -> float | None:
    """Returns the mean of the domains' lost shares; None where there are none."""
    return sum(score.lost for score in scores) / len(scores) if scores else None


def status_of(lost: float) -> Status:
    """Returns what a lost share means."""
    if lost >= DEFAULT.collapsed:
        return "collapsed"
    return "degraded" if lost >= DEFAULT.degraded else "healthy"


def mean_drift(site: SiteActivations, parents: Sequence[ModelRef]) -> float | None:
    """Returns the parents' weighted mean of a residual site's drift; None elsewhere and where it is not known
    for
    all."""
    if site.site != "residual" or len(site.drift) != len(parents):
        return None
    total = 0.0
    for drift, parent in zip(site.drift, parents, strict=True):
        if drift is None:
            return None
        total += drift * (parent.weight if parent.weight is not None else 1 / len(parents))
    return total


def drift_score(evaluation: Evaluation) -> float | None:
    """Returns the largest mean drift over the residual sites: ranks merges of models without predictions."""
    sites = evaluation.activations.sites if evaluation.activations else ()
    drifts = [mean_drift(site, evaluation.parents) for site in sites]
    return max((d for d in drifts if d is not None), default=None)
