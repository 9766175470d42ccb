"""The mean cosine between tokens: 1 where all activations point the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.activations.case import StatisticsCase
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field

if TYPE_CHECKING:
    from torch import Tensor


def mean_cosine(values: Tensor) -> float | None:
    """Returns the mean over pairs of different tokens, from the norm of the sum of their directions.

    Args:
        values: [tokens, units], not centred; tokens of norm 0 are left out.

    Returns:
        None for fewer than two tokens.
    """
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


def _cosine(case: StatisticsCase) -> dict[str, Any]:
    return {"mean_cosine": mean_cosine(case.values)}


MEAN_COSINE = Diagnostic(
    key="mean_cosine",
    label="Mean cosine",
    definition="Mean cosine between pairs of different tokens' activations, which are not centred.",
    unit="cosine",
    depth="activations",
    fields=(
        Field(
            "mean_cosine",
            "Mean cosine between pairs of different tokens' (uncentred) activations.",
            ("statistics",),
        ),
    ),
    measure=_cosine,
)
