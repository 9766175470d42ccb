"""Two more counts of the dimensions that activations fill, which large eigenvalues rule more."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.activations.case import StatisticsCase
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.spectra import participation_ratio, stable_rank


def _participation(case: StatisticsCase) -> dict[str, Any]:
    return {"participation_ratio": participation_ratio(case.eigenvalues)}


def _stable_rank(case: StatisticsCase) -> dict[str, Any]:
    return {"stable_rank": stable_rank(case.eigenvalues)}


PARTICIPATION_RATIO = Diagnostic(
    key="participation_ratio",
    label="Participation ratio",
    definition="(sum l)^2 / sum l^2 of the eigenvalues l of the activations' covariance.",
    unit="dimensions",
    depth="activations",
    fields=(
        Field(
            "participation_ratio",
            "(sum l)^2 / sum l^2. stable <= participation <= effective_rank_variance <= effective_rank.",
            ("statistics",),
        ),
    ),
    measure=_participation,
)

STABLE_RANK = Diagnostic(
    key="stable_rank",
    label="Stable rank",
    definition="sum l / max l of the eigenvalues l of the activations' covariance.",
    unit="dimensions",
    depth="activations",
    fields=(Field("stable_rank", "sum l / max l.", ("statistics",)),),
    measure=_stable_rank,
)
