"""The spectral norm: how far a matrix can stretch a vector."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RATIO, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase, over_parents


def _spectral_norm(case: WeightCase) -> dict[str, Any]:
    merge = case.spectra[-1]
    if merge is None:
        return {}
    norms = [None if one is None else one.spectral_norm for one in case.spectra]
    return {
        "spectral_norm": merge.spectral_norm,
        "spectral_norm_ratio": over_parents(case, norms),
        "spectral_norm_error": merge.spectral_norm_error,
    }


SPECTRAL_NORM = Diagnostic(
    key="spectral_norm_ratio",
    label="Spectral norm",
    definition="Largest singular value of the merged tensor over the parents' mean.",
    unit="ratio",
    depth="weights",
    fields=(
        Field("spectral_norm", "Largest singular value.", ("tensor",)),
        Field("spectral_norm_ratio", "Largest singular value over the parents' mean.", ("tensor", "layer")),
        Field("spectral_norm_error", "Bound of its relative error, 0 where it is exact.", ("tensor",)),
    ),
    measure=_spectral_norm,
    needs=frozenset({"merge", "matrix"}),
    drawing=HeatMap(RATIO),
)
