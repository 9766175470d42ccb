"""What a diagnostic of weights is given: one tensor of the merge and its parents, or all of them as one
vector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from merge_models.evals.diagnostics.diagnostic import Need
    from merge_models.manifolds.span import Gram


class Singular(Protocol):
    """What is known of the singular values of one matrix; errors are relative, 0 where exact."""

    @property
    def spectral_norm(self) -> float: ...
    @property
    def spectral_norm_error(self) -> float: ...
    @property
    def effective_rank(self) -> float: ...
    @property
    def error(self) -> float: ...
    @property
    def method(self) -> str: ...
    @property
    def leading(self) -> Tensor | None: ...


class WeightCase(Protocol):
    """A tensor in all models. Lists hold one value a parent, then the merge's, where there is a merge.

    Attributes:
        has: what there is of what diagnostics may need.
        shares: the parents' shares, summing to 1; empty where the parents are not compared.
        norms: Frobenius norms; None where not finite. ``delta_norms``: of the differences from the base.
        base_norm: the base's.
        points: Gram data of parents and merge, about zero; with a base, of their differences from it.
        parents: Gram data of the parents about zero; ``deltas``: of their differences from the base.
        sign_conflict: share of the contested coordinates whose deltas differ in sign.
        spectra: of the tensors as matrices; ``delta_spectra``: of the differences. None where zero or not
            finite.
    """

    @property
    def has(self) -> frozenset[Need]: ...
    @property
    def shares(self) -> Sequence[float]: ...
    @property
    def norms(self) -> list[float | None]: ...
    @property
    def delta_norms(self) -> list[float | None]: ...
    @property
    def base_norm(self) -> float: ...
    @property
    def points(self) -> Gram: ...
    @property
    def parents(self) -> Gram: ...
    @property
    def deltas(self) -> Gram: ...
    @property
    def sign_conflict(self) -> float | None: ...
    @property
    def spectra(self) -> list[Singular | None]: ...
    @property
    def delta_spectra(self) -> list[Singular | None]: ...

    def rows(self, most: int) -> Iterator[Tensor]:
        """Yields up to ``most`` rows of each model's matrix, [rows, columns] float64, the same ones of
        all."""
        ...


def ratio(value: float | None, others: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Returns a value over the weighted mean of others; None where one is missing or the mean is zero."""
    if value is None or not others or any(other is None for other in others):
        return None
    mean = math.fsum(w * o for w, o in zip(weights, others, strict=True) if o is not None)
    return value / mean if mean > 0 and math.isfinite(value / mean) else None


def over_parents(case: WeightCase, values: Sequence[float | None]) -> float | None:
    """Returns the last of the values, the merge's, over the parents' weighted mean of the others."""
    return ratio(values[-1], values[:-1], case.shares)
