"""What a Gram matrix tells: norms, cosines, the spread on the sphere, and who made the merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from merge_models.evals.measures.weights.moments import Moments
from merge_models.manifolds.span import Gram, coefficients, directions, embed

Cosines = tuple[tuple[float | None, ...], ...]


def ratio(value: float | None, others: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """A value over the weighted mean of others; None where one is missing or the mean is zero."""
    if value is None or not others or any(other is None for other in others):
        return None
    mean = math.fsum(w * o for w, o in zip(weights, others, strict=True) if o is not None)
    return value / mean if mean > 0 and math.isfinite(value / mean) else None


def geometry(moments: Moments, weights: Sequence[float], *, base: bool, merged: bool) -> dict[str, Any]:
    """The fields of ``TensorWeights`` that come from Gram data.

    Args:
        moments: of the parents, then (``merged``) the merge, about the base (``base``) or the first parent.
        weights: the parents', summing to 1; empty where the parents are not compared.
    """
    gram, count = moments.gram, len(weights)
    norms = moments.norms()
    fields: dict[str, Any] = {}
    if merged:
        fields["norm"] = norms[count]
        fields["norm_ratio"] = ratio(norms[count], norms[:count], weights)
        fields["finite"] = moments.finite([count])
    if merged and base:
        deltas = moments.delta_norms()
        fields["delta_norm"] = deltas[count]
        fields["delta_norm_ratio"] = ratio(deltas[count], deltas[:count], weights)
    if not count:
        return fields
    parents = _rows(gram, count)
    angle = largest_angle(parents, weights)
    fields["sign_conflict"] = moments.sign_conflict
    fields["cosine"] = cosines(parents.about_reference() if base else parents)
    fields["largest_angle"] = angle
    fields["unique"] = None if angle is None else angle < math.pi / 2
    fields["mean_norm_ratio"] = kept_by_mean(parents, weights)
    if base:
        fields["mean_delta_norm_ratio"] = kept_by_mean(parents.about_reference(), weights)
    if merged and fields["finite"]:
        fields |= shares(gram.about_reference() if base else gram, count)
    return fields


def _rows(gram: Gram, count: int) -> Gram:
    return Gram(gram.reference, gram.cross[:count], gram.differences[:count, :count])


def cosines(gram: Gram) -> Cosines:
    """Cosines between points; None beside a zero one. The diagonal is exactly 1."""
    units, norms = directions(embed(gram).points)
    product = (units @ units.T).clamp(-1, 1).fill_diagonal_(1.0)
    defined = (norms > 0).tolist()
    return tuple(
        tuple(float(c) if defined[i] and defined[j] else None for j, c in enumerate(row))
        for i, row in enumerate(product)
    )


def largest_angle(gram: Gram, weights: Sequence[float]) -> float | None:
    """The largest angle of the points from their weighted mean, in radians; None where one of them is zero.

    The sphere is about zero, and the mean that of the points themselves, not of their directions. Angles
    are ``2 atan2(|u - v|, |u + v|)`` (Kahan): small ones keep their digits.
    """
    points = embed(gram).points
    share = torch.tensor(weights, dtype=torch.float64)
    units, norms = directions(torch.cat([points, (share @ points).unsqueeze(0)]))
    if not bool((norms > 0).all()):
        return None
    gap, total = (units[:-1] - units[-1]).norm(dim=-1), (units[:-1] + units[-1]).norm(dim=-1)
    return float((2 * torch.atan2(gap, total)).max())


def kept_by_mean(gram: Gram, weights: Sequence[float]) -> float | None:
    """Norm of the points' weighted mean over their mean norm: 1 where they agree, None where all are zero."""
    points = embed(gram).points
    share = torch.tensor(weights, dtype=torch.float64)
    mean = float(share @ points.norm(dim=-1))
    return float((share @ points).norm()) / mean if mean > 0 else None


def shares(gram: Gram, count: int) -> dict[str, Any]:
    """The merge (the last point) as a combination of the parents (the first ``count``).

    Of all least-squares coefficients the smallest are taken, so equal parents share alike.
    """
    points = embed(gram).points
    target, parents = points[count], points[:count]
    energy = float(target @ target)
    fit = coefficients(parents, target)
    magnitudes = fit.abs() / fit.abs().sum() if float(fit.abs().sum()) > 0 else None
    rest = target - fit @ parents
    return {
        "parent_share": tuple(float(c) for c in fit),
        "effective_parents": None if magnitudes is None else _exp_entropy(magnitudes),
        "unexplained": min(1.0, float(rest @ rest) / energy) if energy > 0 else None,
    }


def _exp_entropy(shares: Tensor) -> float:
    positive = shares[shares > 0]
    return float(torch.exp(-(positive * positive.log()).sum()))
