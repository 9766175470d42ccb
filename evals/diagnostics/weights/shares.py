"""Who made the merge: its least-squares fit by the parents, and what is none of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import COUNT, SHARE, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase

if TYPE_CHECKING:
    from torch import Tensor


def _fit(case: WeightCase) -> tuple[Tensor, Tensor, Tensor]:
    """The merge, the parents, and the coefficients that fit it: of all least-squares ones the smallest, so
    that
    equal parents share alike."""
    from merge_models.manifolds.span import coefficients, embed

    count = len(case.shares)
    points = embed(case.points).points
    target, parents = points[count], points[:count]
    return target, parents, coefficients(parents, target)


def _parent_share(case: WeightCase) -> dict[str, Any]:
    _, _, fit = _fit(case)
    total = fit.abs().sum()
    magnitudes = fit.abs() / total if float(total) > 0 else None
    return {
        "parent_share": tuple(float(c) for c in fit),
        "effective_parents": None if magnitudes is None else _exp_entropy(magnitudes),
    }


def _unexplained(case: WeightCase) -> dict[str, Any]:
    target, parents, fit = _fit(case)
    energy, rest = float(target @ target), target - fit @ parents
    return {"unexplained": min(1.0, float(rest @ rest) / energy) if energy > 0 else None}


def _exp_entropy(shares: Tensor) -> float:
    positive = shares[shares > 0]
    return float((-(positive * positive.log()).sum()).exp())


EFFECTIVE_PARENTS = Diagnostic(
    key="effective_parents",
    label="Effective parents",
    definition=(
        "The exponential of the entropy of the parents' shares in the merged tensor: from 1 (one parent) to N"
        " (all alike)."
    ),
    unit="count",
    depth="weights",
    fields=(
        Field(
            "parent_share",
            "Coefficients of the least-squares fit of merge (- base) by the parents (- base).",
            ("tensor", "model"),
            tuple[float, ...] | None,
        ),
        Field(
            "effective_parents",
            "exp of the entropy of the normalised magnitudes of `parent_share`, from 1 to N.",
            ("tensor", "model"),
        ),
    ),
    measure=_parent_share,
    needs=frozenset({"merge", "finite", "parents", "every parent"}),
    drawing=HeatMap(COUNT),
)

UNEXPLAINED = Diagnostic(
    key="unexplained",
    label="Outside the parents' span",
    definition="Share of the merged tensor's squared norm that no mixture of parents gives.",
    unit="share",
    depth="weights",
    fields=(
        Field(
            "unexplained",
            "Share of the squared norm of merge (- base) outside the span of the parents (- base).",
            ("tensor", "model"),
        ),
    ),
    measure=_unexplained,
    needs=frozenset({"merge", "finite", "parents"}),
    drawing=HeatMap(SHARE),
)
