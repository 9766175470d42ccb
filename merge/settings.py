"""Values of parameters that depend on the tensor: filters by name, gradients by depth.

A value is a scalar, a gradient (a list of numbers from the first layer to the last, interpolated), a filter
``{filter: PATTERN, value: VALUE}``, or a list of filters of which the first that matches wins. A pattern is a
substring of the tensor's name, a glob (``*.mlp.*``), a range of layers (``layers:8-15``), or ``*`` for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layers import place_of
from merge_models.merge.errors import RecipeError

_RANGE = re.compile(r"layers:([0-9]{1,6})-([0-9]{1,6})")
_MISSING = object()


def look_up(levels: Sequence[Mapping[str, Any]], key: str, name: str, depth: float, default: Any) -> Any:
    """A parameter's value for one tensor, from the innermost level that has one that applies.

    Args:
        levels: parameters by level, innermost first (source, slice, module, recipe).
        key: the parameter.
        name: the tensor's name.
        depth: its depth in [0, 1].
        default: the value where no level applies.

    Raises:
        RecipeError: a filter or gradient is malformed.
    """
    for level in levels:
        if level.get(key) is not None:
            value = _evaluate(level[key], key, name, depth)
            if value is not _MISSING:
                return value
    return default


def _evaluate(setting: Any, key: str, name: str, depth: float) -> Any:
    if isinstance(setting, Mapping):
        return _filtered([setting], key, name, depth)
    if not isinstance(setting, (list, tuple)):
        return setting
    if not setting:
        raise RecipeError(f"parameter '{key}' is an empty list")
    if any(isinstance(item, Mapping) for item in setting):
        return _filtered(setting, key, name, depth)
    return gradient(setting, key, depth)


def _filtered(filters: Sequence[Any], key: str, name: str, depth: float) -> Any:
    for entry in filters:
        extra = set(entry) - {"filter", "value"} if isinstance(entry, Mapping) else {"?"}
        if extra or "value" not in entry:
            raise RecipeError(f"parameter '{key}': a filter is {{filter: PATTERN, value: VALUE}}")
        if matches(entry.get("filter"), name):
            return _evaluate(entry["value"], key, name, depth)
    return _MISSING


def matches(pattern: Any, name: str) -> bool:
    """Whether a tensor's name fits a pattern (None and ``*`` fit all)."""
    if pattern is None or pattern == "*":
        return True
    text = str(pattern)
    layers = _RANGE.fullmatch(text)
    if layers:
        layer = place_of(name).layer
        return layer is not None and int(layers.group(1)) <= layer <= int(layers.group(2))
    return fnmatchcase(name, text) if re.search(r"[*?\[]", text) else text in name


def gradient(values: Sequence[Any], key: str, depth: float) -> Any:
    """Piecewise linear interpolation over depth; words and booleans are picked, not mixed."""
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        position = depth * (len(values) - 1)
        lower = min(int(position), len(values) - 1)
        upper = min(lower + 1, len(values) - 1)
        share = position - lower
        return values[lower] if share == 0 else (1 - share) * values[lower] + share * values[upper]
    if all(isinstance(v, (bool, str)) for v in values):
        return values[min(int(depth * len(values)), len(values) - 1)]
    raise RecipeError(
        f"parameter '{key}': a gradient is a list of numbers, not {printable(str(list(values)))}"
    )
