"""Weights as shares, and what a recipe's base is under ``origin``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from merge_models.merge.errors import RecipeError
from merge_models.merge.strategies.base import BaseModel


def shares_of(weights: float | tuple[float, ...]) -> tuple[float, ...]:
    """Weights divided by their sum.

    Raises:
        RecipeError: none is above zero.
    """
    assert isinstance(weights, tuple)
    total = math.fsum(weights)
    if total <= 0:
        raise RecipeError("every weight is 0: give at least one model a weight above 0")
    return tuple(weight / total for weight in weights)


def base_under_origin(parameters: Mapping[str, Any]) -> BaseModel:
    """The base is needed under ``origin: base``; else it has no part in the merge, and is a parent if listed.

    An origin that filters choose tensor by tensor makes the base optional.
    """
    origin = parameters.get("origin", "zero")
    if origin == "zero":
        return BaseModel.UNUSED
    return BaseModel.REQUIRED if origin == "base" else BaseModel.OPTIONAL
