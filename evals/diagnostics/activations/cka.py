"""Centred kernel alignment of two models' activations on the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.activations.case import SiteCase
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import LineOfEachParent

if TYPE_CHECKING:
    from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """Returns the debiased linear CKA: HSIC_1(K, L) / sqrt(HSIC_1(K, K) HSIC_1(L, L)) with K = X X', L = Y
    Y'.

    HSIC_1 is the unbiased estimator of Song et al. (2012, "Feature selection via dependence maximization"),
    as Nguyen et al. (2021) use it: without the bias that makes any two matrices look alike when width exceeds
    samples. It is used at every width, so numbers of different layers compare. It is computed from
    [d, d] products where units are fewer than tokens, from [n, n] Gram matrices otherwise; both give the
    same number.

    Args:
        x: [n, d] and y: [n, e], the same n > 3 tokens; their means need not be 0.

    Returns:
        At most 1 (up to rounding) and around 0 for independent ones, so also slightly below it; None where
        one of them does not vary.
    """
    return alignments(x, [y])[0]


def alignments(x: Tensor | None, others: Sequence[Tensor | None]) -> tuple[float | None, ...]:
    """Returns ``linear_cka`` of one with several others; None where one is missing."""
    left = None if x is None else _scaled(x)
    own = None if left is None else _hsic(left, left)
    return tuple(_alignment(left, own, other) for other in others)


def _alignment(left: Tensor | None, own: float | None, other: Tensor | None) -> float | None:
    right = None if other is None else _scaled(other)
    if left is None or right is None or own is None:
        return None
    theirs = _hsic(right, right)
    if not (own > 0 and theirs > 0):
        return None
    value = _hsic(left, right) / math.sqrt(own * theirs)
    return value if math.isfinite(value) else None


def _scaled(x: Tensor) -> Tensor | None:
    """Centred, at unit norm, in float64: CKA does not see the scale, the arithmetic does."""
    if len(x) < 4:
        return None
    centred = x.double() - x.double().mean(0)
    norm = centred.norm()
    return centred / norm if norm > 0 and norm.isfinite() else None


def _hsic(x: Tensor, y: Tensor) -> float:
    """HSIC_1 up to the factor 1 / (n (n - 3)): tr(KL) + 1'K1 1'L1 / ((n-1)(n-2)) - 2 / (n-2) 1'KL1.

    K and L have their diagonals set to 0.
    """
    n = x.shape[0]
    diagonal_x, diagonal_y = x.square().sum(1), y.square().sum(1)
    if n <= min(x.shape[1], y.shape[1]):
        cross = ((x @ x.T) * (y @ y.T)).sum()
    else:
        cross = (x.T @ y).square().sum()
    trace = cross - (diagonal_x * diagonal_y).sum()
    rows_x = x @ x.sum(0) - diagonal_x
    rows_y = y @ y.sum(0) - diagonal_y
    value = trace + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_x @ rows_y)
    return float(value)


def _cka(case: SiteCase) -> dict[str, Any]:
    return {"cka": alignments(case.merged, case.others)}


CKA = Diagnostic(
    key="cka",
    label="CKA",
    definition=(
        "Linear centred kernel alignment of the merge's activations with a parent's on the same tokens,"
        " debiased where the width exceeds the samples. 1: the same geometry up to rotation and scale."
    ),
    unit="1",
    depth="activations",
    fields=(
        Field(
            "cka",
            "Linear CKA of the merge to each parent (debiased when width exceeds samples).",
            ("site",),
            tuple[float | None, ...],
            (),
        ),
    ),
    measure=_cka,
    drawing=LineOfEachParent("Similarity to each parent (CKA)", "CKA", high=1.0),
)
