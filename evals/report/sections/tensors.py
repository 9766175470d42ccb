"""Weights."""

from __future__ import annotations

from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.report import charts
from merge_models.evals.report.html import Html, name, table, tag
from merge_models.evals.report.numbers import UNDEFINED, number, value_of
from merge_models.evals.report.sections.figures import Section, figure
from merge_models.evals.schema import (
    Evaluation,
)


def weights(evaluation: Evaluation) -> Section | None:
    """Returns the section on weights: maps of tensor kind by depth, the whole model's figures, tensors
    outside the stack."""
    weights = evaluation.weights
    if weights is None:
        return None
    drawn = charts.weight_heats(evaluation)
    shares = [
        [
            name(parent.name),
            number(parent.weight),
            number(weights.parent_share[n])
            if weights.parent_share and n < len(weights.parent_share)
            else UNDEFINED,
            number(weights.delta_norms[n])
            if weights.delta_norms and n < len(weights.delta_norms)
            else UNDEFINED,
            *(number(v) for v in (weights.cosine[n] if weights.cosine and n < len(weights.cosine) else ())),
        ]
        for n, parent in enumerate(evaluation.parents)
    ]
    cosines = [["Cosine to ", name(p.name)] for p in evaluation.parents] if weights.cosine else []
    body = [
        tag("p", "Weights are a screening: they need no forward pass, and activations decide."),
        _whole(evaluation),
        table(
            "Parents in the merge" + (" (cosines between deltas)" if evaluation.base else ""),
            ["Parent", "Weight", "Share in the merge", "Delta norm over base", *cosines],
            shares,
            label="Parents in the merge",
        ),
        tag("div", [figure(chart) for chart in drawn], class_="grid"),
        _outside(evaluation),
    ]
    return Section("weights", "Weights", body, drawn)


def _whole(evaluation: Evaluation) -> Html | None:
    weights = evaluation.weights
    if weights is None:
        return None
    scalars = [d for d in shown("model") if isinstance(getattr(weights, d.key), float | int)]
    known = [(d.label, value_of(d, getattr(weights, d.key))) for d in scalars]
    return (
        tag("dl", [tag("div", tag("dt", a), tag("dd", tag("b", b))) for a, b in known], class_="facts small")
        if known
        else None
    )


def _outside(evaluation: Evaluation) -> Html | None:
    """Tensors that no heat map shows: embedding, final norm, head."""
    outside = [t for t in evaluation.weights.tensors if t.layer is None] if evaluation.weights else []
    if not outside:
        return None
    drawn = [d for d in shown("tensor") if d.drawing and any(getattr(t, d.key) is not None for t in outside)]
    rows = [
        [
            name(t.name),
            " × ".join(map(str, t.shape)) or "scalar",
            *(value_of(d, getattr(t, d.key)) for d in drawn),
            "yes" if t.finite else "no",
        ]
        for t in outside[:200]
    ]
    head = ["Tensor", "Shape", *(d.label for d in drawn), "Finite"]
    caption = "Tensors outside the layers" + (
        f", the first 200 of {len(outside)}" if len(outside) > 200 else ""
    )
    return table(caption, head, rows, label="Tensors outside the layers")
