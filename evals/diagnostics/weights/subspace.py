"""Overlap of the leading subspaces of the parents' deltas: whether skills use the same directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.weights.case import WeightCase

if TYPE_CHECKING:
    from torch import Tensor


def subspace_overlap(spaces: list[Tensor]) -> float | None:
    """Returns the mean over pairs of ``|U_a U_b'|_F^2 / k - k / n`` of leading spaces ``[k, n]``: 0 by
    chance.

    Without the subtraction k random dimensions of n would overlap by k / n. Equal spaces give 1 - k / n.
    """
    pairs = [(a, b) for i, a in enumerate(spaces) for b in spaces[i + 1 :]]
    if not pairs:
        return None
    overlaps = []
    for a, b in pairs:
        narrow, n = min(len(a), len(b)), a.shape[1]
        overlaps.append(float((a[:narrow] @ b[:narrow].T).square().sum()) / narrow - narrow / n)
    return math.fsum(overlaps) / len(overlaps)


def _overlap(case: WeightCase) -> dict[str, Any]:
    count = len(case.shares)
    spectra = case.delta_spectra[:count]
    spaces = [one.leading for one in spectra if one is not None and one.leading is not None]
    return {"subspace_overlap": subspace_overlap(spaces) if len(spaces) == count else None}


SUBSPACE_OVERLAP = Diagnostic(
    key="subspace_overlap",
    label="Subspace overlap",
    definition=(
        "Overlap of the parents' leading singular spaces, less the overlap that chance gives. 0: unrelated."
    ),
    unit="1",
    depth="weights",
    fields=(
        Field(
            "subspace_overlap",
            "Mean over parent pairs of ||U_a' U_b||_F^2 / k less its chance level k / n, of the deltas'"
            " leading left singular spaces.",
            ("tensor", "layer"),
        ),
    ),
    measure=_overlap,
    needs=frozenset({"base", "matrix"}),
)
