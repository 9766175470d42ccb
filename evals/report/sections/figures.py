"""A section of the page; charts, and the tables beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from merge_models.evals.report import charts
from merge_models.evals.report.html import Html, details, name, table, tag
from merge_models.evals.report.numbers import UNDEFINED, number
from merge_models.evals.report.shapes import Chart, Dots, Heat, Profile


class Section(NamedTuple):
    """A part of the page: its anchor, heading, markup, and the charts that the page draws in it."""

    key: str
    heading: str
    body: Sequence[object]
    charts: Sequence[Chart] = ()


def figure(chart: Chart) -> Html:
    """Returns a chart's place, its words for those who do not see it, and its table."""
    told, alternative = _told(chart)
    return tag(
        "figure",
        tag("h3", chart.title),
        tag("figcaption", chart.caption) if chart.caption else None,
        tag("p", told, class_="sr"),
        tag("div", class_="chart", data_chart=chart.key),
        details("Values as a table", alternative, class_="data"),
        class_=chart.type,
        id=f"figure-{chart.key}",
    )


def _told(chart: Chart) -> tuple[str, Html]:
    if isinstance(chart, Profile):
        return charts.describe(chart), profile_table(chart)
    if isinstance(chart, Heat):
        return charts.coverage(chart), heat_table(chart)
    return f"{chart.title}: {', '.join(chart.rows)}", dots_table(chart)


def profile_table(chart: Profile) -> Html:
    """Returns a table with a row a position; a column a line and band."""
    lines = [(panel, series) for panel in chart.panels for series in panel.series]
    bands = [(panel, band) for panel in chart.panels for band in panel.bands]
    several = len(chart.panels) > 1
    head: list[object] = [chart.depth.capitalize()]
    for panel, item in (*lines, *bands):
        head.append([f"{panel.title}, " if several else "", name(item.name)])
    rows = []
    for at, position in enumerate(chart.positions):
        row: list[object] = [name(position)]
        for _, series in lines:
            low = series.low[at] if series.low else None
            high = series.high[at] if series.high else None
            spread = f" [{number(low)}, {number(high)}]" if low is not None and high is not None else ""
            row.append(number(series.values[at]) + spread)
        for _, band in bands:
            low, high = band.low[at], band.high[at]
            row.append(UNDEFINED if low is None else f"{number(low)} to {number(high)}")
        rows.append(row)
    return table(None, head, rows, label=chart.title)


def heat_table(chart: Heat) -> Html:
    """Returns a table with a row a layer, a column a kind of tensor."""
    rows = [
        [str(layer), *(number(chart.values[k][at]) for k in range(len(chart.rows)))]
        for at, layer in enumerate(chart.columns)
    ]
    return table(None, ["Layer", *map(name, chart.rows)], rows, label=chart.title)


def dots_table(chart: Dots) -> Html:
    """Returns a table with a row a model."""
    rows = [
        [name(row), number(value), f"{number(low)} to {number(high)}" if low is not None else UNDEFINED]
        for row, value, low, high in zip(chart.rows, chart.values, chart.low, chart.high, strict=True)
    ]
    return table(None, ["Model", chart.label, "95 % interval"], rows, label=chart.title)
