"""The stable rank: over how many directions a matrix's energy spreads, counted by its largest one."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RATIO, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase, over_parents


def _stable_rank(case: WeightCase) -> dict[str, Any]:
    ranks = [
        None if one is None or norm is None else (norm / one.spectral_norm) ** 2
        for norm, one in zip(case.norms, case.spectra, strict=True)
    ]
    return {"stable_rank": ranks[-1], "stable_rank_ratio": over_parents(case, ranks)}


STABLE_RANK = Diagnostic(
    key="stable_rank_ratio",
    label="Stable rank",
    definition="Squared Frobenius norm over squared spectral norm, merge over the parents' mean.",
    unit="ratio",
    depth="weights",
    fields=(
        Field("stable_rank", "Squared Frobenius over squared spectral norm.", ("tensor",)),
        Field("stable_rank_ratio", "Stable rank over the parents' mean.", ("tensor", "layer")),
    ),
    measure=_stable_rank,
    needs=frozenset({"merge", "matrix"}),
    drawing=HeatMap(RATIO),
)
