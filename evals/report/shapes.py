"""The shapes of charts, as plain data: the page draws it, the tables beside the charts print it.

Every chart is a table first. A value that is not defined is None and leaves a gap.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from merge_models.evals.diagnostics.drawing import Scale
from merge_models.evals.report.escape import line

Values = tuple[float | None, ...]
Role = Literal["merge", "parent", "base"]


@dataclass(frozen=True)
class Series:
    """A line: one value a position, with an interval where there is one."""

    name: str
    role: Role
    index: int
    values: Values
    low: Values | None = None
    high: Values | None = None


@dataclass(frozen=True)
class Band:
    """A range behind the lines."""

    name: str
    low: Values
    high: Values


@dataclass(frozen=True)
class Rule:
    """A horizontal line: a reference, or a threshold that decided."""

    value: float
    label: str
    threshold: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot of a profile."""

    title: str
    series: tuple[Series, ...]
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True)
class Profile:
    """Values by depth, one panel a site; all panels share their axes.

    Attributes:
        key: the element's id; ``title`` and ``label`` (of the vertical axis) are shown.
        positions: labels of the positions, layers as a rule; ``flagged``: positions that findings name.
        depth: what a position is, in a word.
        low, high: bounds of the quantity itself, which the axis must not pass.
        span: what the axis shows at least, so that noise does not look like a finding.
        caption: what its values are; ``short``: one word for narrow tables, of charts that these show.
    """

    key: str
    title: str
    label: str
    positions: tuple[str, ...]
    panels: tuple[Panel, ...]
    rules: tuple[Rule, ...] = ()
    flagged: tuple[int, ...] = ()
    depth: str = "layer"
    low: float | None = None
    high: float | None = None
    span: tuple[float, float] | None = None
    caption: str = ""
    short: str = ""
    type: Literal["profile"] = "profile"


@dataclass(frozen=True)
class Heat:
    """A heat map: rows are kinds of tensor, columns layers.

    Attributes:
        scale: its colours.
        caption: what its values are.
    """

    key: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[int, ...]
    values: tuple[Values, ...]
    scale: Scale
    caption: str = ""
    type: Literal["heat"] = "heat"


@dataclass(frozen=True)
class Dots:
    """Values with intervals, one row each."""

    key: str
    title: str
    label: str
    rows: tuple[str, ...]
    values: Values
    low: Values
    high: Values
    roles: tuple[str, ...]
    indices: tuple[int, ...]
    rules: tuple[Rule, ...] = ()
    caption: str = ""
    type: Literal["dots"] = "dots"


Chart = Profile | Heat | Dots


def payload(chart: Chart) -> object:
    """Returns the chart as the page's JSON holds it: names cleaned, numbers at five figures, finer than a
    pixel."""
    words = ("caption", "short")  # these stand in the page itself
    return _plain({key: value for key, value in asdict(chart).items() if key not in words})


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return line(value) if isinstance(value, str) else value
