"""Activations, predictions, sentence vectors: what running the models shows."""

from __future__ import annotations

from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.report import charts
from merge_models.evals.report.html import Html, details, name, table, tag
from merge_models.evals.report.numbers import measured, number, value_of
from merge_models.evals.report.sections.figures import Section, figure
from merge_models.evals.schema import (
    Evaluation,
)


def activations(evaluation: Evaluation) -> Section | None:
    """Returns the section of depth profiles; None where activations were not measured."""
    drawn = charts.activation_profiles(evaluation)
    if not drawn:
        return None
    body = [
        tag(
            "p", "The same tokens through every model. Where the merge's line leaves the parents' band, look."
        ),
        [figure(chart) for chart in drawn],
        _absolute(evaluation),
    ]
    return Section("activations", "Activations by depth", body, drawn)


def _absolute(evaluation: Evaluation) -> Html | None:
    """Statistics of the merge as they are, not as ratios."""
    if evaluation.activations is None:
        return None
    statistics = shown("statistics")
    others = [
        (one, field, one.heading if field.key == one.key else field.text.rstrip("."))
        for one in shown("site")
        for field in one.at("site")
        if field.key != one.key or one.drawing is None
    ]
    rows = [
        [
            charts.SITES[site.site] + (f", layer {site.layer}" if site.layer is not None else ""),
            *(value_of(d, getattr(site.merge, d.key)) for d in statistics),
            *(value_of(one, getattr(site, field.key)) for one, field, _ in others),
            "yes" if site.merge.finite else "no",
        ]
        for site in evaluation.activations.sites
    ]
    head = [
        "Site",
        *(d.label for d in statistics),
        *(heading for _, _, heading in others),
        "Finite",
    ]
    return details(
        "The merge's activation statistics, absolute",
        table(None, head, rows, label="Activation statistics"),
        class_="data",
    )


def predictions(evaluation: Evaluation) -> Section | None:
    """Returns the section on loss and divergences at the head; None for models without one."""
    head = evaluation.activations.head if evaluation.activations else None
    if head is None:
        return None
    drawn = charts.divergence_charts(evaluation)
    distances = shown("divergence")
    rows = [
        [name(d.model), *(value_of(one, getattr(d, one.key)) for one in distances)] for d in head.divergences
    ]
    divergences = table(
        "Distance of the merge's next-token distributions from each model's",
        ["Model", *(one.heading for one in distances)],
        rows,
        label="Divergences",
    )
    domains = list(dict.fromkeys(d for row in head.loss_by_domain.values() for d in row))
    own_numbers = shown("head")
    losses = table(
        "What each model makes of the calibration text, and its loss on each domain",
        ["Model", *(one.heading for one in own_numbers), *(tag("bdi", d) for d in domains)],
        [
            [
                name(model.name),
                *(value_of(one, getattr(head, one.key).get(model.name)) for one in own_numbers),
                *(number(head.loss_by_domain.get(model.name, {}).get(d)) for d in domains),
            ]
            for model in evaluation.models
            if any(model.name in getattr(head, one.key) for one in own_numbers)
        ],
        label="Loss and entropy",
    )
    by_domain = list(dict.fromkeys(d for each in head.divergences for d in each.kl_by_domain))
    body = [
        tag("div", [figure(chart) for chart in drawn], class_="pair"),
        divergences if rows else None,
        table(
            "KL by domain, nats",
            ["Model", *(tag("bdi", d) for d in by_domain)],
            [[name(d.model), *(number(d.kl_by_domain.get(x)) for x in by_domain)] for d in head.divergences],
            label="KL by domain",
        )
        if by_domain
        else None,
        losses if any(getattr(head, one.key) for one in own_numbers) else None,
    ]
    return Section("predictions", "Predictions", body, drawn)


def sentences(evaluation: Evaluation) -> Section | None:
    """Returns the section on sentence vectors; None for models that are no encoders."""
    sentences = evaluation.activations.sentences if evaluation.activations else ()
    if not sentences:
        return None
    body = table(
        "The merge's sentence vectors (mean of the last hidden states) against each model's",
        ["Model", *(one.heading for one in shown("sentence"))],
        [[name(s.model), *(measured(getattr(s, one.key)) for one in shown("sentence"))] for s in sentences],
        label="Sentence vectors",
    )
    return Section("sentences", "Sentence vectors", [body])
