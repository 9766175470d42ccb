"""What is kept of one model's activations: sums over all tokens, values of a sample of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merge_models.evals.measures.activations.sampling import group_of, kept_positions, spread
from merge_models.evals.measures.activations.sites import SiteSpec, tokens_of
from merge_models.evals.measures.activations.store import Region, Store

_USUAL_BYTES, _LARGEST_BYTES = 512 << 20, 2 << 30


@dataclass
class SiteSums:
    """One site of one model.

    Attributes:
        total, squares: [groups, units] float64 sums over tokens; ``count``: [groups] tokens.
        peak: [units], largest magnitude.
        sample: where the kept tokens' values are; ``groups``: group of each of them.
    """

    total: Tensor
    squares: Tensor
    count: Tensor
    peak: Tensor
    sample: Region
    sequences: np.ndarray
    finite: bool = True


@dataclass(frozen=True)
class Budget:
    """How many tokens are kept at a site of ``units`` units: four a unit, for its spectrum, where half a
    gigabyte holds them for all ``sites``, but at least ``sample``, up to two gigabytes."""

    sample: int
    sites: int

    def tokens(self, units: int) -> int:
        each = 4 * units * max(self.sites, 1)
        usual, largest = _USUAL_BYTES // each, _LARGEST_BYTES // each
        return max(1, min(max(self.sample, min(4 * units, usual)), largest))


@dataclass
class Moments:
    """All sites of one model, while it runs.

    Attributes:
        sequences: how many there are in all.
        drop_first: whether the first token of a sequence is left out.
    """

    sequences: int
    budget: Budget
    store: Store
    seed: int
    drop_first: bool
    sites: dict[SiteSpec, SiteSums] = field(default_factory=dict)
    _start: int = 0
    _batch: int = 0

    def begin(self, start: int, batch: int) -> None:
        """Begins a forward pass, which takes sequences ``start`` to ``start + batch``."""
        self._start, self._batch = start, batch

    def take(self, spec: SiteSpec, module: nn.Module, value: Any) -> None:
        """Adds what one forward pass shows at a site."""
        x = tokens_of(value, module, self._batch)
        if x is None:
            return
        if self.drop_first and x.shape[1] > 1:
            x = x[:, 1:]
        x = x.to("cpu", torch.float32)
        if spec not in self.sites:
            self.sites[spec] = self._open(x.shape[1], x.shape[2])
        sums = self.sites[spec]
        if x.shape[2] != sums.total.shape[1]:
            return
        place = slice(self._start, self._start + self._batch)
        group = torch.from_numpy(group_of(self.sequences)[place])
        wide = x.double()
        totals = wide.sum(1)
        if not torch.isfinite(totals).all():
            sums.finite = False
        sums.total.index_add_(0, group, totals)
        sums.squares.index_add_(0, group, wide.square_().sum(1))
        sums.count.index_add_(0, group, torch.full((len(group),), x.shape[1], dtype=torch.float64))
        low, high = torch.aminmax(x.flatten(0, 1), dim=0)
        torch.maximum(sums.peak, torch.maximum(-low, high), out=sums.peak)
        self._keep(sums, x)

    def _open(self, tokens: int, units: int) -> SiteSums:
        wanted = self.budget.tokens(units)
        each = min(tokens, max(1, wanted // self.sequences))
        chosen = spread(wanted, self.sequences)
        groups = int(group_of(self.sequences).max()) + 1
        return SiteSums(
            total=torch.zeros(groups, units, dtype=torch.float64),
            squares=torch.zeros(groups, units, dtype=torch.float64),
            count=torch.zeros(groups, dtype=torch.float64),
            peak=torch.zeros(units),
            sample=self.store.allocate(len(chosen) * each, units),
            sequences=np.repeat(chosen, each),
        )

    def _keep(self, sums: SiteSums, x: Tensor) -> None:
        """Writes the kept tokens of these sequences; a sequence too short for its share repeats its last."""
        first, last = np.searchsorted(sums.sequences, [self._start, self._start + self._batch])
        if first == last:
            return
        sequences, counts = np.unique(sums.sequences[first:last], return_counts=True)
        rows: list[Tensor] = []
        for sequence, count in zip(sequences, counts, strict=True):
            places = kept_positions(self.seed, int(sequence), x.shape[1], int(count))
            places = np.pad(places, (0, count - len(places)), mode="edge")
            rows.append(x[int(sequence) - self._start, torch.from_numpy(places)])
        self.store.write(sums.sample, int(first), torch.cat(rows).numpy())


def shared_sites(models: Sequence[Moments]) -> list[SiteSpec]:
    """Returns the sites that all models have, of the same width and sample, in the first one's order."""
    first, *others = models
    return [
        spec
        for spec, sums in first.sites.items()
        if all(
            spec in other.sites
            and other.sites[spec].total.shape == sums.total.shape
            and other.sites[spec].sample.rows == sums.sample.rows
            for other in others
        )
    ]
