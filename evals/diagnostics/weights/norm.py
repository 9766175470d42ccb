"""Norms of the merge and of its difference from the base: averaging N unrelated tensors keeps 1/sqrt(N) of
them."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RATIO, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase, over_parents


def _norm(case: WeightCase) -> dict[str, Any]:
    return {"norm": case.norms[-1], "norm_ratio": over_parents(case, case.norms)}


def _delta_norm(case: WeightCase) -> dict[str, Any]:
    return {"delta_norm": case.delta_norms[-1], "delta_norm_ratio": over_parents(case, case.delta_norms)}


def _delta_norms(case: WeightCase) -> dict[str, Any]:
    norms = case.delta_norms[: len(case.shares)]
    root = case.base_norm
    return {"delta_norms": tuple(None if norm is None or not root else norm / root for norm in norms)}


NORM = Diagnostic(
    key="norm_ratio",
    label="Norm",
    definition="Frobenius norm of the merged tensor over the parents' mean norm.",
    unit="ratio",
    depth="weights",
    fields=(
        Field("norm", "Frobenius norm of the merged tensor.", ("tensor",)),
        Field("norm_ratio", "Norm over the parents' mean norm.", ("tensor", "layer", "model")),
    ),
    measure=_norm,
    needs=frozenset({"merge"}),
    drawing=HeatMap(RATIO),
    first=True,
)

DELTA_NORM = Diagnostic(
    key="delta_norm_ratio",
    label="Delta norm",
    definition="Norm of merge minus base over the mean norm of parents minus base.",
    unit="ratio",
    depth="weights",
    fields=(
        Field("delta_norm", "Frobenius norm of merge - base.", ("tensor",)),
        Field(
            "delta_norm_ratio",
            "Norm of merge - base over the mean norm of the parents' deltas.",
            ("tensor", "layer", "model"),
        ),
    ),
    measure=_delta_norm,
    needs=frozenset({"merge", "base"}),
    drawing=HeatMap(RATIO),
    first=True,
)

DELTA_NORMS = Diagnostic(
    key="delta_norms",
    label="Delta norm over base",
    definition="Norm of each parent's whole difference from the base, over the base's norm.",
    unit="1",
    depth="weights",
    fields=(
        Field(
            "delta_norms",
            "Norm of each parent's whole delta, over the base's norm; null without a base.",
            ("model",),
            tuple[float | None, ...] | None,
        ),
    ),
    measure=_delta_norms,
    needs=frozenset({"base", "parents"}),
)
