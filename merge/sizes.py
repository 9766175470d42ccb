"""Sizes in bytes, as users write them and as they are told."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

from merge_models.merge.errors import RecipeError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS |= {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str | int, what: str = "shard size") -> int:
    """Returns bytes from ``5GB``, ``500MiB``, ``2_000_000``; decimal units are powers of ten.

    Raises:
        RecipeError: it is no size, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]{0,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise RecipeError(f"{what} '{text}' is not a size in bytes; write 5GB, 500MB or 2GiB")
    size = int(Decimal(match.group(1).replace("_", "")) * unit)
    if size <= 0:
        raise RecipeError(f"{what} '{text}' is not positive; write 5GB, 500MB or 2GiB")
    return size


def shown_size(nbytes: float, rounding: Literal["nearest", "up", "down"] = "nearest") -> str:
    """Returns bytes in the unit that fits, with three digits: ``713 B``, ``4.10 KB``, ``59.0 MB``, ``2.20
    GB``.

    Args:
        nbytes: how many; none negative.
        rounding: ``up`` for what is needed, ``down`` for what there is.
    """
    whole = int(nbytes)
    if whole < 1000:
        return f"{whole} B"
    power = min((len(str(whole)) - 1) // 3, 4)
    step = max(10 ** (len(str(whole)) - 3), 1)
    half = {"nearest": step // 2, "up": step - 1, "down": 0}[rounding]
    rounded = (whole + half) // step * step
    if power < 4 and rounded >= 1000 ** (power + 1):
        power += 1
    digits = max(0, 3 - len(str(rounded // 1000**power)))
    return f"{rounded / 1000**power:.{digits}f} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"
