"""O-information by depth."""

from __future__ import annotations

from merge_models.evals.report import charts
from merge_models.evals.report.html import details, name, table
from merge_models.evals.report.numbers import measured, number
from merge_models.evals.report.sections.figures import Section, figure
from merge_models.evals.schema import (
    Evaluation,
)


def information(evaluation: Evaluation) -> Section | None:
    """Returns the section on O-information by depth; None where none was measured."""
    chart = charts.information_profile(evaluation)
    if chart is None or evaluation.information is None:
        return None
    rows = [
        [
            name(o.what),
            "–" if o.layer is None else str(o.layer),
            f"{o.variables}",
            f"{o.dimensions}",
            f"{o.samples:,}",
            measured(o.o_information),
            number(o.tc),
            number(o.dtc),
            number(o.s_information),
            o.reading or "refused",
        ]
        for o in evaluation.information.between
    ]
    head = ["System", "Layer", "Blocks", "Columns", "Samples", "Ω, nats", "TC", "DTC", "S", "Reading"]
    readings = details(
        "Systems between parents and merge",
        table(None, head, rows, words=(9,), label="O-information"),
        class_="data",
    )
    body = [figure(chart), readings if rows else None]
    return Section("information", "Information", body, [chart])
