"""Numbers as a reader wants them: three figures, thin words for what is not defined."""

from __future__ import annotations

import math

from merge_models.evals.diagnostics.diagnostic import Diagnostic
from merge_models.evals.schema import Estimate

UNDEFINED = "–"


def number(value: float | int | None, digits: int = 3) -> str:
    """Returns three significant figures; whole numbers with separators; powers of ten beyond 1e5 and under
    1e-3."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e5 or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{_sign(mantissa)}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return _sign(f"{value:,.{decimals}f}")


def _sign(text: str) -> str:
    """The typographic minus, which is as wide as a figure."""
    return text.replace("-", "\u2212", 1) if text.startswith("-") else text


def percent(value: float | None) -> str:
    """Returns a share as a percentage, one decimal below ten."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    scaled = 100 * value
    if 0 < abs(scaled) < 0.05:
        return "< 0.1 %"
    return _sign(f"{scaled:.1f} %" if 0 < abs(scaled) < 9.95 else f"{scaled:.0f} %")


def value_of(diagnostic: Diagnostic, value: float | Estimate | tuple[int, ...] | None) -> str:
    """Returns a value in the diagnostic's unit: shares as percentages, lists of units counted, others as
    numbers."""
    if isinstance(value, tuple):
        return count(len(value), "unit") if value else "none"
    if diagnostic.unit == "share":
        return percent(value.value if isinstance(value, Estimate) else value)
    return measured(value) if isinstance(value, Estimate) else number(value)


def interval(estimate: Estimate | None) -> str:
    """Returns the 95 % interval in brackets, empty where none was drawn."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def measured(estimate: Estimate | None) -> str:
    """Returns a value with its interval."""
    if estimate is None:
        return UNDEFINED
    return " ".join(part for part in (number(estimate.value), interval(estimate)) if part)


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: ``1 layer``, ``12 layers``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def ranges(numbers: tuple[int, ...]) -> str:
    """Returns numbers as ranges: ``0–3, 7`` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
