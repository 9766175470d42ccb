"""From sums and samples to the numbers of the report, one site at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.diagnostics.activations.units import MASSIVE
from merge_models.evals.diagnostics.diagnostic import Need
from merge_models.evals.diagnostics.registry import at
from merge_models.evals.diagnostics.spectra import singular_values_of
from merge_models.evals.measures.activations.moments import SiteSums
from merge_models.evals.measures.activations.sampling import MAX_GROUPS, interval
from merge_models.evals.measures.activations.sites import SiteSpec
from merge_models.evals.measures.activations.store import Store
from merge_models.evals.schema import Estimate, SiteActivations, SiteStatistics


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
        """Returns the variance over tokens of each kept unit; [draws, units] where groups are drawn so often
        each."""
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
        """Returns the effective rank of each draw, [draws].

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
    """Returns every model's sample at one site, with the same units left out: those that are massive in a
    parent."""
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
    """Returns eigenvalues of the centred covariance, through the smaller of the two Gram matrices, in
    float64.

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


@dataclass(frozen=True)
class ModelAtSite:
    """One model at a site (``evals.diagnostics.activations.case.StatisticsCase``).

    Attributes:
        sample: its kept tokens; ``eigenvalues``: of their covariance.
    """

    sample: Sample
    eigenvalues: np.ndarray
    has: frozenset[Need] = frozenset({"finite"})

    @property
    def values(self) -> Tensor:
        """[tokens, units] float32, units that are massive in a parent left out."""
        return self.sample.values

    @cached_property
    def variances(self) -> Tensor:
        """Of each unit over all tokens, [units] float64."""
        return self.sample.variances()

    @property
    def massive(self) -> tuple[int, ...]:
        """Numbers of its own massive units."""
        return self.sample.massive


def statistics_of(sample: Sample, of_covariance: Spectrum | None) -> SiteStatistics:
    """Returns one model's numbers at one site; none where it is not finite."""
    if of_covariance is None:
        return SiteStatistics(finite=False)
    case = ModelAtSite(sample, of_covariance.eigenvalues)
    fields: dict[str, Any] = {}
    for diagnostic in at("statistics"):
        fields |= diagnostic.values("statistics", case)
    return SiteStatistics(**fields)


@dataclass(frozen=True)
class SiteOfAll:
    """All models at one site (``evals.diagnostics.activations.case.SiteCase``).

    Attributes:
        spec: the site.
        samples, spectra: by model: the merge's, the parents', the base's where there is one; a spectrum is
            None where the model is not finite there.
        weights: the parents' shares, summing to 1; they say how many parents there are.
        rows: which kept tokens CKA and drift take.
        drawn: the bootstrap's draws, [draws, groups].
    """

    spec: SiteSpec
    samples: Sequence[Sample]
    spectra: Sequence[Spectrum | None]
    weights: tuple[float, ...]
    rows: np.ndarray
    drawn: Tensor

    @property
    def of_parents(self) -> slice:
        """Where the parents stand among the models."""
        return slice(1, 1 + len(self.weights))

    @cached_property
    def has(self) -> frozenset[Need]:
        """``finite`` where merge and parents are."""
        known = self.spectra[0] is not None and all(self.spectra[self.of_parents])
        return frozenset({"finite"} if known else {})

    @cached_property
    def statistics(self) -> list[SiteStatistics]:
        """Of each model."""
        return [statistics_of(s, f) for s, f in zip(self.samples, self.spectra, strict=True)]

    @property
    def merge(self) -> SiteStatistics:
        """The merge's statistics."""
        return self.statistics[0]

    @property
    def parents(self) -> list[SiteStatistics]:
        """The parents'."""
        return self.statistics[self.of_parents]

    @cached_property
    def merged(self) -> Tensor | None:
        """The merge's values at the chosen tokens, [tokens, units]; None where it is not finite."""
        return self._values(0)

    @cached_property
    def others(self) -> list[Tensor | None]:
        """Each parent's."""
        return [self._values(1 + n) for n in range(len(self.weights))]

    def variances(self, drawn: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Returns the variances of each unit of the merge and of each parent, [units] or [draws, units]."""
        groups = self.drawn if drawn else None
        merge, *parents = (one.variances(groups) for one in self.samples[: 1 + len(self.weights)])
        return merge, parents

    def effective_ranks(self) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Returns the effective ranks of each draw, [draws], where they were prepared for."""
        known = [f for f in self.spectra[: 1 + len(self.weights)] if f is not None and f.first is not None]
        if len(known) <= len(self.weights):
            return None
        merge, *parents = (one.effective_ranks(self.drawn) for one in known)
        return merge, parents

    def estimate(self, value: float, drawn: np.ndarray | None) -> Estimate:
        """Returns a value with the 95 % interval of its draws."""
        low, high = (None, None) if drawn is None else interval(drawn)
        return Estimate(value=value, low=low, high=high)

    def record(self) -> SiteActivations:
        """Returns what the report holds of the site."""
        fields: dict[str, Any] = {}
        for diagnostic in at("site"):
            fields |= diagnostic.values("site", self)
        base = self.statistics[self.of_parents.stop :]
        return SiteActivations(
            site=self.spec.site,
            layer=self.spec.layer,
            module=self.spec.module,
            merge=self.merge,
            parents=tuple(self.parents),
            base=base[0] if base else None,
            **fields,
        )

    def _values(self, number: int) -> Tensor | None:
        if self.spectra[number] is None:
            return None
        return self.samples[number].values[torch.from_numpy(self.rows)]
