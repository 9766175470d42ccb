"""What may be sent to another process: functions and classes that can be imported there by their name."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from merge_models.merge.contract.strategy import AbstractStrategy, class_text
from merge_models.merge.errors import PlanError


def check_sendable(strategy: AbstractStrategy | None, *values: Any) -> None:
    """Checks that a strategy and what its kernel is made of can be sent to another process.

    Raises:
        PlanError: something is defined in a function or a session, where no other process finds it.
    """
    for value in (strategy, *values):
        bad = _unsendable(value)
        if bad:
            maker = "a kernel" if strategy is None else class_text(type(strategy))
            raise PlanError(
                f"{maker}: cannot be sent to another process, since {bad} has no place that can be imported;"
                " define it at the top of a module, or merge with threads"
            )


def _unsendable(value: Any) -> str:
    """The first part of a value that no import finds; empty where all can be found."""
    if isinstance(value, partial):
        return next(filter(None, map(_unsendable, (value.func, *value.args, *value.keywords.values()))), "")
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, type(sys)):
        return _unsendable(owner)
    thing = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    place: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        place = getattr(place, name, None)
    importable = place is thing and thing.__module__ != "__main__"
    return "" if importable else f"{thing.__module__}:{thing.__qualname__}"
