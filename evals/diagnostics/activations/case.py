"""What a diagnostic of activations is given: one model at a site, or all models at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from merge_models.evals.diagnostics.diagnostic import Need
    from merge_models.evals.diagnostics.record import Estimate


class StatisticsCase(Protocol):
    """One model at one site. Units that are massive in a parent are left out; values are finite.

    Attributes:
        values: [tokens, units] float32, of a sample of tokens.
        variances: of each unit over all tokens, [units] float64.
        eigenvalues: of the covariance, [units] or [tokens], whichever are fewer.
        massive: numbers of the model's own massive units.
    """

    @property
    def has(self) -> frozenset[Need]: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def variances(self) -> Tensor: ...
    @property
    def eigenvalues(self) -> np.ndarray: ...
    @property
    def massive(self) -> tuple[int, ...]: ...


class SiteCase(Protocol):
    """All models at one site.

    Attributes:
        has: what there is; ``finite`` where merge and parents are.
        weights: the parents' shares, summing to 1.
        merge: the merge's statistics; ``parents``: theirs (records of ``SiteStatistics``).
        merged: the merge's values, [tokens, units], None where not finite; ``others``: each parent's.
    """

    @property
    def has(self) -> frozenset[Need]: ...
    @property
    def weights(self) -> Sequence[float]: ...
    @property
    def merge(self) -> Any: ...
    @property
    def parents(self) -> Sequence[Any]: ...
    @property
    def merged(self) -> Tensor | None: ...
    @property
    def others(self) -> Sequence[Tensor | None]: ...

    def variances(self, drawn: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Returns the merge's and the parents' variances of each unit, [units] or [draws, units] of the
        bootstrap."""
        ...

    def effective_ranks(self) -> tuple[np.ndarray, list[np.ndarray]] | None:
        """Returns the merge's and the parents' effective rank of each draw of the bootstrap, where it was
        asked for."""
        ...

    def estimate(self, value: float, drawn: np.ndarray | None) -> Estimate:
        """Returns a value with the 95 % interval of its draws."""
        ...


def weighted(weights: Sequence[float], values: Sequence[Any]) -> Any:
    """Returns the weighted mean of numbers, tensors or arrays of one shape."""
    return sum(w * v for w, v in zip(weights, values, strict=True))
