"""How a diagnostic is drawn: the form of its chart, and the scale of its colours."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Scale:
    """Colours of a heat map.

    Attributes:
        name: what it is a scale of.
        steps: values at which the colour changes, rising.
        colours: one more than steps; each is the name of a CSS variable of ``report.css``, which has it for
            light and dark pages.
        middle: the value that is as it should be, of scales that diverge about one.
    """

    name: str
    steps: tuple[float, ...]
    colours: tuple[str, ...]
    middle: float | None = None

    def up_to(self, most: float) -> Scale:
        """Returns the scale for values from 1 to ``most``; scales with steps of their own stay as they
        are."""
        if self.steps:
            return self
        bins = len(self.colours)
        return replace(self, steps=tuple(1 + (most - 1) * n / bins for n in range(1, bins)))


RATIO = Scale(
    "ratio", (0.5, 0.7, 0.85, 0.95, 1.05, 1.18, 1.43, 2), tuple(f"r{n}" for n in range(9)), middle=1.0
)
"""Diverges about 1, equally far by factors."""

SHARE = Scale("share", (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75), tuple(f"s{n}" for n in range(9)))
"""From 0 to 1, fine near 0."""

COUNT = Scale("count", (), tuple(f"s{8 - n}" for n in range(8)))
"""From 1 to as many as there are; few is what stands out."""


@dataclass(frozen=True)
class HeatMap:
    """A map of tensor kinds by layers."""

    scale: Scale


@dataclass(frozen=True)
class RatioByDepth:
    """The merge's line beside the band of its parents, a panel a kind of site.

    Attributes:
        title: of the chart; ``short``: one word for narrow tables.
        statistic: key of what the ratio is of, for the parents' band.
        cause: of the findings whose threshold and layers are marked.
    """

    title: str
    short: str
    statistic: str
    cause: str


@dataclass(frozen=True)
class LineOfEachParent:
    """A line for each parent, a panel a kind of site.

    Attributes:
        title: of the chart; ``axis``: of its values.
        low, high: bounds of the quantity, which the axis must not pass.
    """

    title: str
    axis: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class DotOfEachModel:
    """A dot with its interval for each model.

    Attributes:
        title: of the chart; ``axis``: of its values.
        reference: key of a number in the record around it that the dots are read by, and its words.
    """

    title: str
    axis: str
    reference: tuple[str, str] | None = None


Drawing = HeatMap | RatioByDepth | LineOfEachParent | DotOfEachModel
