"""How a strategy's dataclass fields describe themselves: the one source of schema, help and checks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from merge_models.merge.errors import RecipeError, counted, did_you_mean

LARGEST = 1e30
"""Bound on the size of any number, far beyond sense, so that sums and products of them stay finite."""


@dataclass(frozen=True)
class Parameter:
    """What a field of a strategy accepts.

    Attributes:
        name: its name in recipes (``lambda`` for the field ``lambda_``).
        field: its name in Python.
        kind: ``float``, ``int``, ``bool`` or ``str``.
        default: value where nothing is given.
        doc: one line.
        per_model: whether each parent has its own; the field then holds a tuple.
        minimum, maximum: inclusive bounds of numbers.
        above, below: exclusive bounds of numbers.
        choices: the words that a ``str`` may be.
        flags: the choices that false and true stand for, where recipes may say so.
    """

    name: str
    field: str
    kind: type
    default: Any
    doc: str
    per_model: bool
    minimum: float | None
    maximum: float | None
    above: float | None
    below: float | None
    choices: tuple[str, ...]
    flags: tuple[str, str] | None

    def check(self, value: Any) -> Any:
        """Returns the value in this parameter's type.

        Raises:
            RecipeError: the value has another type, is not finite, or is out of range.
        """
        if value is None and self.default is None:
            return None
        if value is not None and getattr(value, "ndim", None) == 0:  # a number of numpy's or torch's
            value = value.item()
        if self.kind is bool:
            return self._check_bool(value)
        if self.kind is str:
            return self._check_choice(value)
        value = self.number(value)
        if self.kind is int and value != int(value):
            raise RecipeError(f"parameter '{self.name}' takes a whole number, not {value!r}")
        number = self.kind(value)
        self._check_range(number)
        return number

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, which gradients may run through."""
        return self.kind in (int, float)

    def number(self, value: Any) -> int | float:
        """Returns a number, also where YAML has it as a word, as YAML 1.1 has 1e-4.

        Raises:
            RecipeError: it is none, or not finite.
        """
        number = _number(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise RecipeError(f"parameter '{self.name}' takes a number, not {value!r}")
        if abs(number) > LARGEST or not math.isfinite(number):
            shown = number if isinstance(number, float) else "such a large one"
            raise RecipeError(f"parameter '{self.name}' must be a finite number within 1e30, not {shown}")
        return number

    def _check_bool(self, value: Any) -> bool:
        flag = _flag(value)
        if flag is not None:
            return flag
        raise RecipeError(f"parameter '{self.name}' takes true or false, not {value!r}")

    def _check_choice(self, value: Any) -> str:
        if isinstance(value, str) and (not self.choices or value in self.choices):
            return value
        flag = _flag(value)
        if self.flags and flag is not None:
            return self.flags[flag]
        hint = did_you_mean(str(value), self.choices)
        raise RecipeError(
            f"parameter '{self.name}' takes one of {', '.join(self.choices)}, not {value!r}{hint}"
        )

    def _check_range(self, number: float) -> None:
        low = self.minimum is not None and number < self.minimum
        low = low or (self.above is not None and number <= self.above)
        high = self.maximum is not None and number > self.maximum
        high = high or (self.below is not None and number >= self.below)
        if low or high:
            raise RecipeError(f"parameter '{self.name}' must be {self.range_text()}, not {number:g}")

    def range_text(self) -> str:
        """Returns the accepted values in words, such as ``in [0, 1]``."""
        if self.choices:
            flags = f"; true means {self.flags[1]}, false {self.flags[0]}" if self.flags else ""
            return " | ".join(self.choices) + flags
        if self.kind is bool:
            return "true | false"
        lower = "(-inf" if self.minimum is None and self.above is None else ""
        if self.minimum is not None:
            lower = f"[{self.minimum:g}"
        elif self.above is not None:
            lower = f"({self.above:g}"
        upper = "inf)" if self.maximum is None and self.below is None else ""
        if self.maximum is not None:
            upper = f"{self.maximum:g}]"
        elif self.below is not None:
            upper = f"{self.below:g})"
        return "any finite number" if (lower, upper) == ("(-inf", "inf)") else f"in {lower}, {upper}"


def parameter(
    default: Any,
    doc: str,
    *,
    kind: type | None = None,
    per_model: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    flags: tuple[str, str] | None = None,
) -> Any:
    """Returns a dataclass field that is a strategy's parameter; arguments as in :class:`Parameter`."""
    details = {
        "kind": kind or type(default),
        "doc": doc,
        "per_model": per_model,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "choices": choices,
        "flags": flags,
    }
    return dataclasses.field(default=default, metadata=details)


def parameters_of(strategy: type) -> dict[str, Parameter]:
    """Returns the parameters of a strategy class by their recipe names, in order of declaration."""
    fields = dataclasses.fields(strategy)
    described = [
        Parameter(name=f.name.rstrip("_"), field=f.name, default=f.default, **f.metadata)
        for f in fields
        if f.metadata
    ]
    return {p.name: p for p in described}


_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _flag(value: Any) -> bool | None:
    """What a boolean is meant to be, as YAML and mergekit write it; None where it is none."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def per_model_values(parameter: Parameter, value: Any, count: int) -> tuple[Any, ...]:
    """Returns a per-model field's values, one per parent.

    Raises:
        RecipeError: a sequence of another length was given.
    """
    if getattr(value, "ndim", None) == 1:  # an array or a tensor
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return (parameter.check(value),) * count
    if len(value) != count:
        raise RecipeError(
            f"'{parameter.name}' has {counted(len(value), 'value')} for {counted(count, 'model')}"
        )
    return tuple(parameter.check(v) for v in value)
