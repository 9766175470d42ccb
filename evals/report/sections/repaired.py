"""What a repair did."""

from __future__ import annotations

from merge_models.evals.report import charts
from merge_models.evals.report.html import tag
from merge_models.evals.report.numbers import number
from merge_models.evals.report.sections.figures import Section, figure
from merge_models.evals.report.terms import REPAIR
from merge_models.evals.schema import (
    Evaluation,
)


def repair(evaluation: Evaluation) -> Section | None:
    """Returns the section on what a repair changed; None where there was none."""
    report = evaluation.repair
    if report is None:
        return None
    chart = charts.repair_profile(evaluation)
    loss = None
    if report.loss_before is not None and report.loss_after is not None:
        loss = tag(
            "p",
            "Loss on held-out text: ",
            tag("b", number(report.loss_before)),
            " before, ",
            tag("b", number(report.loss_after)),
            " after (nats a token).",
        )
    body = [
        loss,
        figure(chart) if chart else tag("p", REPAIR.definition),
    ]
    return Section("repair", "Repair", body, [chart] if chart else [])
