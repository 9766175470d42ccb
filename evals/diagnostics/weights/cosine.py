"""Cosines between the parents' deltas: runs of one task point the same way, unrelated skills do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.weights.case import WeightCase

if TYPE_CHECKING:
    from merge_models.manifolds.span import Gram

Cosines = tuple[tuple[float | None, ...], ...]


def cosines(gram: Gram) -> Cosines:
    """Returns the cosines between points, [N, N]; None beside a zero one. The diagonal is exactly 1."""
    from merge_models.manifolds.span import directions, embed

    units, norms = directions(embed(gram).points)
    product = (units @ units.T).clamp(-1, 1).fill_diagonal_(1.0)
    defined = (norms > 0).tolist()
    return tuple(
        tuple(float(c) if defined[i] and defined[j] else None for j, c in enumerate(row))
        for i, row in enumerate(product)
    )


def _cosine(case: WeightCase) -> dict[str, Any]:
    return {"cosine": cosines(case.deltas if "base" in case.has else case.parents)}


COSINE = Diagnostic(
    key="cosine",
    label="Cosine",
    definition="Cosines between the parents' differences from the base; without a base, between the parents.",
    unit="cosine",
    depth="weights",
    fields=(
        Field(
            "cosine",
            "Matrix of cosines between the parents' deltas (between the parents where there is no base).",
            ("tensor", "model"),
            Cosines | None,
        ),
    ),
    measure=_cosine,
    needs=frozenset({"parents", "every parent"}),
)
