"""Variance of activations: an average of imperfectly correlated signals varies less than they do."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.activations.case import SiteCase, StatisticsCase, weighted
from merge_models.evals.diagnostics.activations.units import DEAD
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RatioByDepth
from merge_models.evals.diagnostics.record import Estimate


def _variance(case: StatisticsCase) -> dict[str, Any]:
    return {"variance": float(case.variances.mean()) if len(case.variances) else 0.0}


def _ratio(case: SiteCase) -> dict[str, Any]:
    """Per unit, over the parents' weighted mean; units that do not vary in any parent have none."""
    merge, parents = case.variances()
    reference = weighted(case.weights, parents)
    alive = reference > DEAD * reference.mean()
    if not alive.any():
        return {}
    ratios = (merge / reference)[alive]
    merge_drawn, parents_drawn = case.variances(drawn=True)
    again = merge_drawn / weighted(case.weights, parents_drawn)
    drawn = again[:, alive].quantile(0.5, dim=1).numpy()
    return {
        "variance_ratio": case.estimate(float(ratios.quantile(0.5)), drawn),
        "variance_ratio_p5": float(ratios.quantile(0.05)),
    }


VARIANCE = Diagnostic(
    key="variance",
    label="Variance",
    definition="Mean over units of the variance over tokens.",
    unit="1",
    depth="activations",
    fields=(Field("variance", "Mean over units of the variance over tokens.", ("statistics",)),),
    measure=_variance,
)

VARIANCE_RATIO = Diagnostic(
    key="variance_ratio",
    label="Variance ratio",
    definition=(
        "Variance over tokens of each unit of the merge, over the parents' weighted mean variance of that"
        " unit; the median over units. 1: as the parents. Below 1: activations shrink, which compounds with"
        " depth (Jordan et al. 2023). Bands show each parent's mean variance over the same weighted mean."
    ),
    unit="ratio",
    depth="activations",
    fields=(
        Field(
            "variance_ratio",
            "Median over units of the merge's variance over the parents' weighted mean variance (REPAIR,"
            " Jordan et al. 2023).",
            ("site",),
            Estimate | None,
        ),
        Field("variance_ratio_p5", "5th percentile over units of the variance ratio.", ("site",)),
    ),
    measure=_ratio,
    needs=frozenset({"finite"}),
    drawing=RatioByDepth("Activation variance", "variance", "variance", "variance collapse"),
    first=True,
)
