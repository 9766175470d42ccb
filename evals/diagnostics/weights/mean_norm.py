"""How much norm plain averaging keeps: what means on the sphere are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.weights.case import WeightCase

if TYPE_CHECKING:
    from merge_models.manifolds.span import Gram


def kept_by_mean(gram: Gram, weights: Sequence[float]) -> float | None:
    """Returns the norm of the points' weighted mean over their mean norm: 1 where they agree.

    Returns:
        None where all points are zero.
    """
    import torch

    from merge_models.manifolds.span import embed

    points = embed(gram).points
    share = torch.tensor(weights, dtype=torch.float64)
    mean = float(share @ points.norm(dim=-1))
    return float((share @ points).norm()) / mean if mean > 0 else None


def _kept(case: WeightCase) -> dict[str, Any]:
    return {"mean_norm_ratio": kept_by_mean(case.parents, case.shares)}


def _kept_of_deltas(case: WeightCase) -> dict[str, Any]:
    return {"mean_delta_norm_ratio": kept_by_mean(case.deltas, case.shares)}


MEAN_NORM = Diagnostic(
    key="mean_norm_ratio",
    label="Norm that averaging keeps",
    definition="Norm of the parents' weighted mean over their mean norm.",
    unit="ratio",
    depth="weights",
    fields=(
        Field(
            "mean_norm_ratio",
            "Norm of the parents' weighted mean over their mean norm: what plain averaging keeps.",
            ("tensor", "model"),
        ),
    ),
    measure=_kept,
    needs=frozenset({"parents"}),
)

MEAN_DELTA_NORM = Diagnostic(
    key="mean_delta_norm_ratio",
    label="Delta norm that averaging keeps",
    definition="Norm of the weighted mean of the parents' deltas over the deltas' mean norm.",
    unit="ratio",
    depth="weights",
    fields=(
        Field(
            "mean_delta_norm_ratio",
            "Norm of the weighted mean of the parents' deltas over the deltas' mean norm.",
            ("tensor", "model"),
        ),
    ),
    measure=_kept_of_deltas,
    needs=frozenset({"parents", "base"}),
)
