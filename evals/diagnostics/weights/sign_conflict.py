"""Sign conflict: where the parents' deltas pull a coordinate both ways."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import SHARE, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase


def _sign_conflict(case: WeightCase) -> dict[str, Any]:
    return {"sign_conflict": case.sign_conflict}


SIGN_CONFLICT = Diagnostic(
    key="sign_conflict",
    label="Sign conflict",
    definition=(
        "Share of the coordinates with at least two nonzero parent deltas whose deltas differ in sign. "
        "Unrelated deltas of two parents give 0.5."
    ),
    unit="share",
    depth="weights",
    fields=(
        Field(
            "sign_conflict",
            "Share of the coordinates with at least two nonzero deltas whose nonzero deltas differ in sign.",
            ("tensor", "layer", "model"),
        ),
    ),
    measure=_sign_conflict,
    needs=frozenset({"parents", "every parent"}),
    drawing=HeatMap(SHARE),
)
