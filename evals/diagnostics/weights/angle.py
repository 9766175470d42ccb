"""The spread of the parents on the sphere about the origin, and whether their Karcher mean is unique."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.weights.case import WeightCase

if TYPE_CHECKING:
    from merge_models.manifolds.span import Gram


def largest_angle(gram: Gram, weights: Sequence[float]) -> float | None:
    """Returns the largest angle of the points from their weighted mean, in radians; None where one is zero.

    The sphere is about zero, and the mean that of the points themselves, not of their directions. Angles
    are ``2 atan2(|u - v|, |u + v|)`` (Kahan): small ones keep their digits.
    """
    import torch

    from merge_models.manifolds.span import directions, embed

    points = embed(gram).points
    share = torch.tensor(weights, dtype=torch.float64)
    units, norms = directions(torch.cat([points, (share @ points).unsqueeze(0)]))
    if not bool((norms > 0).all()):
        return None
    gap, total = (units[:-1] - units[-1]).norm(dim=-1), (units[:-1] + units[-1]).norm(dim=-1)
    return float((2 * torch.atan2(gap, total)).max())


def _angle(case: WeightCase) -> dict[str, Any]:
    angle = largest_angle(case.parents, case.shares)
    return {"largest_angle": angle, "unique": None if angle is None else angle < math.pi / 2}


LARGEST_ANGLE = Diagnostic(
    key="largest_angle",
    label="Largest angle",
    definition=(
        "Largest angle of the parents from their weighted mean, on the sphere about the origin. Under pi /"
        " 2 for all, their Karcher mean is unique."
    ),
    unit="radians",
    depth="weights",
    fields=(
        Field(
            "largest_angle",
            "Largest angle of the parents from their weighted mean, on the sphere about the origin, in"
            " radians.",
            ("tensor",),
        ),
        Field(
            "unique",
            "Whether all lie in the ball in which the Karcher mean is unique (angle < pi / 2).",
            ("tensor",),
            bool | None,
        ),
    ),
    measure=_angle,
    needs=frozenset({"parents"}),
)
