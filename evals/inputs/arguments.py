"""What callers give, checked before any work: places of models, lists of them, weights, counts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from merge_models.merge.errors import MergeError, counted, printable


def checked_place(value: Any, what: str) -> str:
    """Returns a model's folder or Hub id.

    Raises:
        MergeError: it is something else, such as a module.
    """
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    raise MergeError(
        f"{what} is a folder or a Hub id, not {type(value).__name__}; diagnose_modules takes modules"
    )


def checked_models(values: Any, what: str = "parents") -> tuple[Any, ...]:
    """Returns models one by one.

    Raises:
        MergeError: it is one model, not several.
    """
    single = isinstance(values, (str, os.PathLike, Mapping)) or hasattr(values, "state_dict")
    if single or not isinstance(values, Iterable):
        raise MergeError(f"{what} is one model; give a list of them")
    return tuple(values)


def checked_weights(values: Any) -> tuple[float, ...] | None:
    """Returns the parents' weights as numbers, or None.

    Raises:
        MergeError: one is no number.
    """
    if values is None:
        return None
    given = tuple(values) if isinstance(values, Iterable) else (values,)
    try:
        if isinstance(values, (str, Mapping)):
            raise TypeError
        return tuple(float(value) for value in given)
    except (TypeError, ValueError):
        raise MergeError(f"weights are numbers, one per parent, not {printable(repr(values), 80)}") from None


def checked_count(value: Any, what: str, least: int = 0) -> int:
    """Returns a whole number, of Python's or numpy's.

    Raises:
        MergeError: it is none, or too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        shown = printable(repr(value), 80)
        raise MergeError(f"{what} is a whole number of {least} or more, not {shown}")
    return int(value)


def checked_batches(values: Any) -> tuple[Any, ...]:
    """Returns batches one by one.

    Raises:
        MergeError: it is one batch, not several.
    """
    if isinstance(values, Mapping) or hasattr(values, "shape") or not isinstance(values, Iterable):
        raise MergeError("batches is one batch; give a list of them")
    return tuple(values)


def checked_shares(values: Any, count: int) -> tuple[float, ...]:
    """Returns the parents' weights, of which none is negative and one is positive; equal ones for None.

    Raises:
        MergeError: they are others, or not one for each parent.
    """
    given = checked_weights(values)
    shares = (1.0,) * count if given is None else given
    if len(shares) != count:
        raise MergeError(
            f"{counted(len(shares), 'weight')} for {counted(count, 'parent')}; give one for each"
        )
    if not all(w >= 0 for w in shares) or not 0 < sum(shares) < float("inf"):
        raise MergeError("parents' weights must be finite, none negative, and one positive")
    return shares
