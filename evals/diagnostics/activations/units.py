"""Units that say nothing, and units that drown all others."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.activations.case import StatisticsCase
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field

DEAD = 1e-6
"""Share of the mean unit's variance under which a unit is dead."""

MASSIVE = 100.0
"""Times the median magnitude of what is not 0 over which a unit's largest magnitude is massive (Sun et al.
2024)."""


def _dead(case: StatisticsCase) -> dict[str, Any]:
    variances = case.variances
    if not len(variances):
        return {}
    return {"dead_units": float((variances <= DEAD * float(variances.mean())).double().mean())}


def _massive(case: StatisticsCase) -> dict[str, Any]:
    return {"massive_units": case.massive}


DEAD_UNITS = Diagnostic(
    key="dead_units",
    label="Dead units",
    definition="Share of units whose variance is under 1e-6 of the mean unit's.",
    unit="share",
    depth="activations",
    fields=(
        Field(
            "dead_units", "Share of units whose variance is under 1e-6 of the mean unit's.", ("statistics",)
        ),
    ),
    measure=_dead,
)

MASSIVE_UNITS = Diagnostic(
    key="massive_units",
    label="Massive units left out",
    definition=(
        "Units whose largest magnitude is over 100 times the median of what is not 0 (Sun et al. 2024)."
        " Those that are massive in a parent are left out of all statistics."
    ),
    unit="",
    depth="activations",
    fields=(
        Field(
            "massive_units",
            "Units left out: their largest magnitude is over 100 times the median of what is not 0, in a"
            " parent (Sun et al. 2024); the list is the model's own.",
            ("statistics",),
            tuple[int, ...],
            (),
        ),
    ),
    measure=_massive,
)
