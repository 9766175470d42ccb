"""Drift: how far the merge's activations are from each parent's, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.activations.case import SiteCase
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import LineOfEachParent

if TYPE_CHECKING:
    from torch import Tensor


def drift(merged: Tensor | None, other: Tensor | None) -> float | None:
    """Returns the mean over tokens of ||h_merge - h_other|| / ||h_other||, tokens of norm 0 left out.

    Args:
        merged, other: [tokens, units]; None where not finite.
    """
    if merged is None or other is None:
        return None
    norms = other.double().norm(dim=1)
    used = norms > 0
    if not used.any():
        return None
    return float(((merged.double() - other.double()).norm(dim=1)[used] / norms[used]).mean())


def _drift(case: SiteCase) -> dict[str, Any]:
    return {"drift": tuple(drift(case.merged, other) for other in case.others)}


DRIFT = Diagnostic(
    key="drift",
    label="Drift",
    definition=(
        "Mean over tokens of the distance between the merge's and a parent's activations over the length of"
        " the parent's. 0: the same."
    ),
    unit="1",
    depth="activations",
    fields=(
        Field(
            "drift",
            "Mean over tokens of ||h_merge - h_parent|| / ||h_parent||, to each parent.",
            ("site",),
            tuple[float | None, ...],
            (),
        ),
    ),
    measure=_drift,
    drawing=LineOfEachParent("Drift from each parent", "relative drift", low=0.0),
)
