"""Weights: as shares, as they are, and where they cancel out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from merge_models.merge.contract.strategy import BaseModel
from merge_models.merge.errors import RecipeError

NOT_DIVIDED = "weights that sum to zero are not divided by their sum, as in mergekit"


def shares_of(weights: float | tuple[float, ...]) -> tuple[float, ...]:
    """Returns weights divided by their sum.

    Raises:
        RecipeError: none is above zero.
    """
    assert isinstance(weights, tuple)
    total = math.fsum(weights)
    if total <= 0:
        raise RecipeError("every weight is 0: give at least one model a weight above 0")
    return tuple(weight / total for weight in weights)


def is_zero_sum(weights: tuple[float, ...]) -> bool:
    """Returns whether weights cancel out, to rounding."""
    return abs(math.fsum(weights)) <= 1e-8 * math.fsum(map(abs, weights))


def divisor_of(weights: tuple[float, ...]) -> float:
    """Returns what ``normalize`` divides a sum of task vectors by: the weights' sum, or 1 where they cancel
    out, as in mergekit; task vectors with such weights are taken from each other."""
    return 1.0 if is_zero_sum(weights) else math.fsum(weights)


def normalised(weights: tuple[float, ...], what: str = "weights") -> tuple[float, ...]:
    """Returns weights, negative ones perhaps, divided by their sum.

    Raises:
        RecipeError: the sum is zero, or as good as zero against the weights.
    """
    total = math.fsum(weights)
    if abs(total) <= 1e-12 * math.fsum(abs(w) for w in weights):
        raise RecipeError(
            f"{what} {', '.join(f'{w:g}' for w in weights)} sum to zero and cannot be normalised;"
            " change them or set normalize: false"
        )
    return tuple(w / total for w in weights)


def base_under_origin(parameters: Mapping[str, Any]) -> BaseModel:
    """Returns what the base is under the parameter ``origin``.

    It is needed under ``origin: base``; else it has no part in the merge, and is a parent if listed. An
    origin that filters choose tensor by tensor makes it optional.
    """
    origin = parameters.get("origin", "zero")
    if origin == "zero":
        return BaseModel.UNUSED
    return BaseModel.REQUIRED if origin == "base" else BaseModel.OPTIONAL
