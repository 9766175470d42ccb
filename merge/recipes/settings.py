"""Values of parameters that depend on the tensor: filters by name, gradients by depth.

A value is a scalar, a gradient (a list of numbers from the first layer to the last, interpolated), a filter
``{filter: PATTERN, value: VALUE}``, or a list of filters of which the first that matches wins. A pattern is a
substring of the tensor's name, a glob (``*.mlp.*``), a range of layers (``layers:8-15``), or ``*`` for all.
In a recipe of slices a gradient runs through each slice, wherever it stands, and parameters that each model
has of its own are filtered by the tensor's name in that model; both as in mergekit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layers import place_of
from merge_models.merge.contract.parameters import Parameter
from merge_models.merge.errors import RecipeError

_RANGE = re.compile(r"layers:([0-9]{1,6})-([0-9]{1,6})")
_MISSING = object()

MAX_PATTERN = 1000
"""Characters of a pattern: compiling one takes time by its length."""


def look_up(levels: Sequence[Mapping[str, Any]], parameter: Parameter, name: str, depth: float) -> Any:
    """Returns a parameter's value for one tensor, from the innermost level that has one that applies.

    Args:
        levels: parameters by level, innermost first (source, slice, module, recipe).
        parameter: the parameter; its default is the value where no level applies.
        name: the tensor's name.
        depth: its depth in [0, 1].

    Raises:
        RecipeError: a filter or gradient is malformed.
    """
    for level in levels:
        setting = level.get(parameter.name)
        if setting is not None:
            value = _evaluate(setting, parameter, name, depth)
            if value is not _MISSING:
                return value
    return parameter.default


def _evaluate(setting: Any, parameter: Parameter, name: str, depth: float) -> Any:
    if isinstance(setting, Mapping):
        return _filtered([setting], parameter, name, depth)
    if not isinstance(setting, (list, tuple)):
        return setting
    if not setting:
        raise RecipeError(f"parameter '{parameter.name}' is an empty list")
    if any(isinstance(item, Mapping) for item in setting):
        return _filtered(setting, parameter, name, depth)
    return gradient(setting, parameter, depth)


def is_gradient(setting: Any) -> bool:
    """Returns whether a setting changes with depth, in a filter of it perhaps."""
    if isinstance(setting, Mapping):
        return is_gradient(setting.get("value"))
    if not isinstance(setting, (list, tuple)):
        return False
    nested = [item for item in setting if isinstance(item, Mapping)]
    return any(map(is_gradient, nested)) if nested else len(setting) > 1


def patterns(setting: Any) -> list[Any]:
    """Returns the patterns of a setting's filters, nested ones included."""
    if isinstance(setting, Mapping):
        return [setting.get("filter"), *patterns(setting.get("value"))]
    if isinstance(setting, (list, tuple)):
        return [pattern for item in setting for pattern in patterns(item)]
    return []


def _filtered(filters: Sequence[Any], parameter: Parameter, name: str, depth: float) -> Any:
    for entry in filters:
        extra = set(entry) - {"filter", "value"} if isinstance(entry, Mapping) else {"?"}
        if extra or "value" not in entry:
            raise RecipeError(f"parameter '{parameter.name}': a filter is {{filter: PATTERN, value: VALUE}}")
        if matches(entry.get("filter"), name):
            return _evaluate(entry["value"], parameter, name, depth)
    return _MISSING


def matches(pattern: Any, name: str) -> bool:
    """Returns whether a tensor's name fits a pattern (None and ``*`` fit all).

    Raises:
        RecipeError: the pattern is longer than any name.
    """
    if pattern is None or pattern == "*":
        return True
    text = str(pattern)
    if len(text) > MAX_PATTERN:
        raise RecipeError(
            f"a pattern of {len(text)} characters; '{printable(text, 40)}' is longer than any tensor's name"
        )
    layers = _RANGE.fullmatch(text)
    if layers:
        layer = place_of(name).layer
        return layer is not None and int(layers.group(1)) <= layer <= int(layers.group(2))
    return fnmatchcase(name, text) if re.search(r"[*?\[]", text) else text in name


def gradient(values: Sequence[Any], parameter: Parameter, depth: float) -> Any:
    """Returns piecewise linear interpolation over depth; words and booleans are picked, each up to where the
    next one stands, not mixed."""
    if parameter.is_number:
        numbers = [parameter.number(value) for value in values]
        position = depth * (len(numbers) - 1)
        lower = min(int(position), len(numbers) - 1)
        upper = min(lower + 1, len(numbers) - 1)
        share = position - lower
        return numbers[lower] if share == 0 else (1 - share) * numbers[lower] + share * numbers[upper]
    if all(isinstance(v, (bool, str)) for v in values):
        return values[int(depth * (len(values) - 1))]
    raise RecipeError(
        f"parameter '{parameter.name}': a gradient is a list of numbers, not {printable(str(list(values)))}"
    )
