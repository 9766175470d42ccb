"""The effective rank (Roy and Vetterli 2007) of the merge and of its difference from the base."""

from __future__ import annotations

from typing import Any, Literal

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RATIO, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase, over_parents


def _rank(case: WeightCase) -> dict[str, Any]:
    if case.spectra[-1] is None:
        return {}
    ranks = [None if one is None else one.effective_rank for one in case.spectra]
    return {"effective_rank": ranks[-1], "effective_rank_ratio": over_parents(case, ranks)}


def _delta_rank(case: WeightCase) -> dict[str, Any]:
    ranks = [None if one is None else one.effective_rank for one in case.delta_spectra]
    return {"delta_effective_rank": ranks[-1], "delta_effective_rank_ratio": over_parents(case, ranks)}


def _accuracy(case: WeightCase) -> dict[str, Any]:
    merge = case.spectra[-1]
    return {} if merge is None else {"rank_method": merge.method, "rank_error": merge.error}


EFFECTIVE_RANK = Diagnostic(
    key="effective_rank_ratio",
    label="Effective rank",
    definition=(
        "The exponential of the entropy of a tensor's normalised singular values, merge over parents' mean."
    ),
    unit="ratio",
    depth="weights",
    fields=(
        Field(
            "effective_rank",
            "exp of the entropy of the normalised singular values (Roy and Vetterli 2007).",
            ("tensor",),
        ),
        Field("effective_rank_ratio", "Effective rank over the parents' mean.", ("tensor", "layer")),
    ),
    measure=_rank,
    needs=frozenset({"merge", "matrix"}),
    drawing=HeatMap(RATIO),
    first=True,
)

DELTA_EFFECTIVE_RANK = Diagnostic(
    key="delta_effective_rank_ratio",
    label="Effective rank of the delta",
    definition="Effective rank of merge minus base, over the mean of that of parents minus base.",
    unit="ratio",
    depth="weights",
    fields=(
        Field("delta_effective_rank", "Effective rank of merge - base.", ("tensor",)),
        Field(
            "delta_effective_rank_ratio",
            "Effective rank of merge - base over the mean of the parents' deltas.",
            ("tensor", "layer"),
        ),
    ),
    measure=_delta_rank,
    needs=frozenset({"merge", "base", "matrix"}),
    drawing=HeatMap(RATIO),
    first=True,
)

RANK_ACCURACY = Diagnostic(
    key="rank_error",
    label="Error of the effective rank",
    definition="Relative error bound or standard error of an effective rank that was estimated; 0: exact.",
    unit="1",
    depth="weights",
    fields=(
        Field(
            "rank_method",
            "`exact` (all singular values) or `estimated`.",
            ("tensor",),
            Literal["exact", "estimated"] | None,
        ),
        Field("rank_error", "Relative error bound or standard error of the effective rank.", ("tensor",)),
    ),
    measure=_accuracy,
    needs=frozenset({"merge", "matrix"}),
)
