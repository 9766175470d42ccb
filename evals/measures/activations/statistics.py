"""From sums and samples to the numbers of the report, one site at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.measures.activations.moments import SiteSums
from merge_models.evals.measures.activations.sampling import MAX_GROUPS, interval
from merge_models.evals.measures.activations.similarity import alignments
from merge_models.evals.measures.activations.sites import SiteSpec
from merge_models.evals.measures.activations.store import Store
from merge_models.evals.measures.spectra import (
    effective_rank,
    effective_rank_variance,
    participation_ratio,
    singular_values_of,
    stable_rank,
)
from merge_models.evals.schema import Estimate, SiteActivations, SiteStatistics

MASSIVE, DEAD = 100.0, 1e-6


@dataclass(frozen=True)
class Sample:
    """One model's kept tokens at one site.

    Attributes:
        values: [tokens, units] float32, units that are massive in a parent left out.
        sums: the site's sums; ``kept``: which units were not left out.
        massive: its own massive units.
    """

    values: Tensor
    sums: SiteSums
    kept: Tensor
    massive: tuple[int, ...]

    @property
    def finite(self) -> bool:
        return self.sums.finite

    def variances(self, drawn: Tensor | None = None) -> Tensor:
        """Variance over tokens of each kept unit; [draws, units] where groups are drawn so often each."""
        sums = self.sums
        count = sums.count.sum() if drawn is None else (drawn @ sums.count)[:, None]
        total = sums.total.sum(0) if drawn is None else drawn @ sums.total
        squares = sums.squares.sum(0) if drawn is None else drawn @ sums.squares
        return (squares / count - (total / count).square()).clamp_min(0)[..., self.kept]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the covariance, and each group's share in them (``None`` where it was not asked for).

    Attributes:
        first, second: [groups, dimensions], sums over a group's tokens of the centred projections on the
            eigenvectors, and of their squares; ``count``: [groups].
    """

    eigenvalues: np.ndarray
    first: Tensor | None = None
    second: Tensor | None = None
    count: Tensor | None = None

    def effective_ranks(self, drawn: Tensor) -> np.ndarray:
        """Effective rank of each draw, [draws].

        Eigenvectors stay those of the whole sample: eigenvalues are then right to first order in how much a
        draw's covariance differs.
        """
        assert self.first is not None and self.second is not None and self.count is not None
        count = (drawn @ self.count)[:, None]
        variance = (drawn @ self.second) / count - ((drawn @ self.first) / count).square()
        sigma = variance.clamp_min(0).sqrt()
        shares = sigma / sigma.sum(1, keepdim=True)
        return torch.special.entr(shares).sum(1).exp().numpy()


def samples_of(store: Store, sums: Sequence[SiteSums], parents: Sequence[int]) -> list[Sample]:
    """Every model's sample at one site, with the same units left out: those that are massive in a parent."""
    values = [torch.from_numpy(store.read(site.sample)) for site in sums]
    massive = [_massive(site, value) for site, value in zip(sums, values, strict=True)]
    kept = torch.ones(values[0].shape[1], dtype=torch.bool)
    for parent in parents:
        kept &= ~massive[parent]
    whole = bool(kept.all())
    return [
        Sample(value if whole else value[:, kept], site, kept, tuple(own.nonzero().flatten().tolist()))
        for value, site, own in zip(values, sums, massive, strict=True)
    ]


def _massive(sums: SiteSums, values: Tensor) -> Tensor:
    """Units whose largest magnitude is over 100 times the median of all values (Sun et al. 2024).

    Zeros do not count for the median: most values may be 0 after a ReLU.
    """
    magnitudes = values.abs()
    magnitudes = magnitudes[magnitudes > 0]
    if not sums.finite or not len(magnitudes):
        return torch.zeros_like(sums.peak, dtype=torch.bool)
    return sums.peak > MASSIVE * magnitudes.median()


def spectrum(sample: Sample, groups: bool) -> Spectrum:
    """Eigenvalues of the centred covariance, through the smaller of the two Gram matrices, in float64.

    Args:
        sample: n tokens of d units: the covariance matrix where d <= n, else the tokens' Gram matrix.
        groups: whether intervals will be drawn.
    """
    centred = sample.values.double()
    centred -= centred.mean(0)
    n, d = centred.shape
    wide = d > n
    gram = (centred @ centred.T if wide else centred.T @ centred) / n
    if not groups:
        return Spectrum(torch.linalg.eigvalsh(gram).numpy())
    values, vectors = torch.linalg.eigh(gram)
    scale = (values.clamp_min(0) * n).sqrt()
    projections = (vectors * scale if wide else centred @ vectors).clone()
    projections[:, torch.from_numpy(singular_values_of(values.numpy()) == 0)] = 0
    return Spectrum(values.numpy(), *_by_group(projections, sample.sums))


def _by_group(projections: Tensor, sums: SiteSums) -> tuple[Tensor, Tensor, Tensor]:
    group = torch.from_numpy(sums.sequences % min(len(sums.count), MAX_GROUPS))
    empty = torch.zeros(len(sums.count), projections.shape[1], dtype=torch.float64)
    count = torch.zeros(len(sums.count), dtype=torch.float64)
    count.index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
    first = empty.index_add(0, group, projections)
    return first, empty.index_add(0, group, projections.square()), count


def statistics_of(sample: Sample, found: Spectrum | None) -> SiteStatistics:
    """One model's numbers at one site; without any where it is not finite."""
    if found is None:
        return SiteStatistics(finite=False)
    variances = sample.variances()
    mean = float(variances.mean()) if len(variances) else 0.0
    return SiteStatistics(
        variance=mean,
        effective_rank=effective_rank(singular_values_of(found.eigenvalues)),
        effective_rank_variance=effective_rank_variance(found.eigenvalues),
        participation_ratio=participation_ratio(found.eigenvalues),
        stable_rank=stable_rank(found.eigenvalues),
        mean_cosine=_mean_cosine(sample.values),
        dead_units=float((variances <= DEAD * mean).double().mean()) if len(variances) else None,
        massive_units=sample.massive,
    )


def _mean_cosine(values: Tensor) -> float | None:
    """Mean over pairs of different tokens, from the norm of the sum of their directions."""
    n = len(values)
    if n < 2:
        return None
    norms = values.double().square().sum(1).sqrt()
    used = norms > 0
    count = int(used.sum())
    if count < 2:
        return None
    total = (values[used].double() / norms[used, None]).sum(0).square().sum()
    return float((total - count) / (count * (count - 1)))


@dataclass(frozen=True)
class Site:
    """All models at one site.

    Attributes:
        spec: the site.
        samples, spectra: by model; a spectrum is None where the model is not finite there.
        merge, base: their numbers among the models; ``parents``: theirs, with ``weights`` that sum to 1.
        rows: which kept tokens CKA and drift take.
    """

    spec: SiteSpec
    samples: list[Sample]
    spectra: list[Spectrum | None]
    merge: int
    parents: tuple[int, ...]
    base: int | None
    weights: tuple[float, ...]
    rows: np.ndarray

    def record(self, drawn: Tensor) -> SiteActivations:
        """The report's record; ``drawn`` are the bootstrap's draws, [draws, groups]."""
        numbers = [statistics_of(s, f) for s, f in zip(self.samples, self.spectra, strict=True)]
        finite = self.spectra[self.merge] is not None and all(self.spectra[p] for p in self.parents)
        ratio, low = self._variance_ratio(drawn) if finite else (None, None)
        values = [sample.values[torch.from_numpy(self.rows)] for sample in self.samples]
        others = [values[p] if self.spectra[p] is not None else None for p in self.parents]
        merged = values[self.merge] if self.spectra[self.merge] is not None else None
        return SiteActivations(
            site=self.spec.site,
            layer=self.spec.layer,
            module=self.spec.module,
            merge=numbers[self.merge],
            parents=tuple(numbers[p] for p in self.parents),
            base=None if self.base is None else numbers[self.base],
            variance_ratio=ratio,
            variance_ratio_p5=low,
            effective_rank_ratio=self._rank_ratio(numbers, drawn) if finite else None,
            cka=alignments(merged, others),
            drift=tuple(_drift(merged, other) for other in others),
        )

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        return sum((w * v for w, v in zip(self.weights, values, strict=True)), torch.zeros(()))

    def _variance_ratio(self, drawn: Tensor) -> tuple[Estimate | None, float | None]:
        """Per unit, over the parents' weighted mean; units that do not vary in any parent have none."""
        parents = [self.samples[p] for p in self.parents]
        reference = self._mean([parent.variances() for parent in parents])
        alive = reference > DEAD * reference.mean()
        if not alive.any():
            return None, None
        ratios = (self.samples[self.merge].variances() / reference)[alive]
        again = self.samples[self.merge].variances(drawn) / self._mean([p.variances(drawn) for p in parents])
        low, high = interval(again[:, alive].quantile(0.5, dim=1).numpy())
        value = Estimate(value=float(ratios.quantile(0.5)), low=low, high=high)
        return value, float(ratios.quantile(0.05))

    def _rank_ratio(self, numbers: Sequence[SiteStatistics], drawn: Tensor) -> Estimate | None:
        ranks = [numbers[p].effective_rank for p in self.parents]
        merged = numbers[self.merge].effective_rank
        known = [rank for rank in ranks if rank is not None]
        if merged is None or len(known) < len(ranks):
            return None
        value = merged / sum(w * rank for w, rank in zip(self.weights, known, strict=True))
        low = high = None
        spectra = [self.spectra[n] for n in (self.merge, *self.parents)]
        if all(found is not None and found.first is not None for found in spectra):
            top, *rest = [found.effective_ranks(drawn) for found in spectra if found is not None]
            low, high = interval(top / sum(w * rank for w, rank in zip(self.weights, rest, strict=True)))
        return Estimate(value=value, low=low, high=high)


def _drift(merged: Tensor | None, other: Tensor | None) -> float | None:
    """Mean over tokens of ||h_merge - h_other|| / ||h_other||, tokens of norm 0 left out."""
    if merged is None or other is None:
        return None
    norms = other.double().norm(dim=1)
    used = norms > 0
    if not used.any():
        return None
    return float(((merged.double() - other.double()).norm(dim=1)[used] / norms[used]).mean())
