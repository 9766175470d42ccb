"""What diagnostics of weights are measured on: one tensor, all of them as one vector, or groups of layers."""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.diagnostics.diagnostic import Need, Place
from merge_models.evals.diagnostics.registry import at
from merge_models.evals.measures.weights.blocks import read_flat, scratch
from merge_models.evals.measures.weights.family import TensorFamily, shares_among
from merge_models.evals.measures.weights.moments import Moments
from merge_models.evals.measures.weights.spectrum import Spectrum, spectrum
from merge_models.manifolds.span import Gram


def measured(place: Place, case: Case | GroupedCase) -> dict[str, Any]:
    """Returns the fields of all diagnostics of a place; those whose needs are not there are left out."""
    fields: dict[str, Any] = {}
    for diagnostic in at(place):
        fields |= diagnostic.values(place, case)
    return fields


@dataclass(frozen=True)
class Case:
    """Sums over the elements of one tensor, or of all tensors
    (``evals.diagnostics.weights.case.WeightCase``).

    Attributes:
        moments: of the parents, then (where there is one) the merge, about the base, else about the first
            parent.
        shares: of the parents that are compared, summing to 1; ``every``: how many parents there are.
        has_base, has_merge: whether there are such.
        family: the tensor itself, for what sums do not tell; None for all together.
    """

    moments: Moments
    shares: tuple[float, ...]
    every: int
    has_base: bool
    has_merge: bool
    family: TensorFamily | None = None

    @cached_property
    def has(self) -> frozenset[Need]:
        """What there is of what diagnostics may need."""
        count, family = len(self.shares), self.family
        there: dict[Need, bool] = {
            "merge": self.has_merge,
            "base": self.has_base,
            "parents": count > 0,
            "every parent": count == self.every > 0,
            "matrix": family is not None and len(family.shape) >= 2 and family.count > 0,
            "finite": self.has_merge and self.moments.finite([count]),
        }
        return frozenset(need for need, known in there.items() if known)

    @cached_property
    def norms(self) -> list[float | None]:
        """Frobenius norms of parents and merge; None where not finite."""
        return self.moments.norms()

    @cached_property
    def delta_norms(self) -> list[float | None]:
        """Norms of their differences from the base; None where not finite."""
        return self.moments.delta_norms()

    @property
    def base_norm(self) -> float:
        """The base's Frobenius norm."""
        return float(self.moments.gram.reference.sqrt())

    @property
    def points(self) -> Gram:
        """Parents and merge, about zero; with a base, their differences from it."""
        return self.moments.gram.about_reference() if self.has_base else self.moments.gram

    @property
    def parents(self) -> Gram:
        """The parents, about zero."""
        gram, count = self.moments.gram, len(self.shares)
        return Gram(gram.reference, gram.cross[:count], gram.differences[:count, :count])

    @property
    def deltas(self) -> Gram:
        """The parents' differences from the base."""
        return self.parents.about_reference()

    @property
    def sign_conflict(self) -> float | None:
        """Share of the contested coordinates whose deltas differ in sign."""
        return self.moments.sign_conflict

    @property
    def seed(self) -> int:
        """Of random vectors and sampled rows: equal for equal names, whatever thread or model."""
        return zlib.crc32(self._tensor.name.encode())

    @cached_property
    def spectra(self) -> list[Spectrum | None]:
        """Singular values of parents and merge as matrices; of none where the merge is not finite."""
        if self.norms[-1] is None:
            return [None] * len(self.norms)
        pairs = zip(self._tensor.models, self.norms, strict=True)
        return [spectrum(one, None, norm, self.seed) for one, norm in pairs]

    @cached_property
    def delta_spectra(self) -> list[Spectrum | None]:
        """Singular values of the differences from the base; of several parents with their leading spaces."""
        count = len(self._tensor.parents)
        return [
            spectrum(one, self._tensor.base, norm, self.seed, leading=i < count > 1)
            for i, (one, norm) in enumerate(zip(self._tensor.models, self.delta_norms, strict=True))
        ]

    def rows(self, most: int) -> Iterator[Tensor]:
        """Yields up to ``most`` rows of each model's matrix, [rows, columns] float64, the same ones of
        all."""
        height = self._tensor.shape[0]
        numbers = np.arange(height)
        if height > most:
            numbers = np.sort(np.random.default_rng(self.seed).choice(height, most, replace=False))
        columns = self._tensor.count // height
        for model in self._tensor.models:
            rows = torch.empty(len(numbers), columns, dtype=torch.float64)
            (buffer,) = scratch([model], columns)
            for out, row in zip(rows, numbers, strict=True):
                out.copy_(read_flat(model, int(row) * columns, (int(row) + 1) * columns, buffer))
            yield rows

    @property
    def _tensor(self) -> TensorFamily:
        assert self.family is not None, "a diagnostic that reads a tensor needs 'matrix'"
        return self.family


@dataclass(frozen=True)
class GroupedCase:
    """A merge whose layers came from different parents: over the mean norms of those that each came from,
    together.

    Attributes:
        groups: sums of the tensors that came from the same parents, by these parents' numbers.
        all_shares: of all parents.
        has_base: whether there is one.
    """

    groups: Mapping[tuple[int, ...], Moments]
    all_shares: tuple[float, ...]
    has_base: bool

    @property
    def has(self) -> frozenset[Need]:
        """A merge, and a base: no parents that all of it could be compared with."""
        return frozenset({"merge", "base"} if self.has_base else {"merge"})

    @property
    def shares(self) -> tuple[float, ...]:
        """Of what stands for the parents: one, whose norm is the mean of theirs."""
        return (1.0,)

    @property
    def norms(self) -> list[float | None]:
        """The parents' mean norm, then the merge's."""
        return self._means(Moments.norms)

    @property
    def delta_norms(self) -> list[float | None]:
        """The parents' mean norm of differences from the base, then the merge's."""
        return self._means(Moments.delta_norms)

    def _means(self, norms_of: Callable[[Moments], list[float | None]]) -> list[float | None]:
        merges, means = [], []
        for whose, moments in self.groups.items():
            *parents, merge = norms_of(moments)
            known = [norm for norm in parents if norm is not None]
            if merge is None or len(known) < len(parents):
                return [None, None]
            merges.append(merge)
            means.append(math.fsum(map(operator.mul, shares_among(self.all_shares, whose), known)))
        return [math.hypot(*means), math.hypot(*merges)]
