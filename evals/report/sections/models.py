"""Activations, predictions, sentence vectors: what running the models shows."""

from __future__ import annotations

from merge_models.evals.report import charts
from merge_models.evals.report.definitions import DEFINITIONS
from merge_models.evals.report.html import Html, details, name, table, tag
from merge_models.evals.report.numbers import count, measured, number, percent
from merge_models.evals.report.sections.figures import Section, figure
from merge_models.evals.schema import (
    Evaluation,
)


def activations(evaluation: Evaluation) -> Section | None:
    """Depth profiles."""
    drawn = charts.activation_profiles(evaluation)
    if not drawn:
        return None
    body = [
        tag(
            "p", "The same tokens through every model. Where the merge's line leaves the parents' band, look."
        ),
        [figure(chart, DEFINITIONS[chart.key].text) for chart in drawn],
        _absolute(evaluation),
    ]
    return Section("activations", "Activations by depth", body, drawn)


def _absolute(evaluation: Evaluation) -> Html | None:
    """Statistics of the merge as they are, not as ratios."""
    if evaluation.activations is None:
        return None
    rows = []
    for site in evaluation.activations.sites:
        s = site.merge
        where = charts.SITES[site.site] + (f", layer {site.layer}" if site.layer is not None else "")
        rows.append(
            [
                where,
                number(s.variance),
                number(s.effective_rank),
                number(s.effective_rank_variance),
                number(s.participation_ratio),
                number(s.stable_rank),
                number(s.mean_cosine),
                percent(s.dead_units),
                count(len(s.massive_units), "unit") if s.massive_units else "none",
                number(site.variance_ratio_p5),
                "yes" if s.finite else "no",
            ]
        )
    head = [
        "Site",
        "Variance",
        "Effective rank (singular values)",
        "Effective rank (eigenvalues)",
        "Participation ratio",
        "Stable rank",
        "Mean cosine",
        "Dead units",
        "Massive units left out",
        "Variance ratio, 5th percentile of units",
        "Finite",
    ]
    return details(
        "The merge's activation statistics, absolute",
        table(None, head, rows, label="Activation statistics"),
        class_="data",
    )


def predictions(evaluation: Evaluation) -> Section | None:
    """Loss and divergences at the head."""
    head = evaluation.activations.head if evaluation.activations else None
    if head is None:
        return None
    drawn = charts.divergence_charts(evaluation)
    rows = [
        [
            name(d.model),
            measured(d.kl),
            measured(d.js),
            measured(d.fisher_rao),
            percent(d.top1_agreement.value),
        ]
        for d in head.divergences
    ]
    divergences = table(
        "Distance of the merge's next-token distributions from each model's",
        ["Model", "KL, nats", "JS, nats", "Fisher-Rao, radians", "Top-1 agreement"],
        rows,
        label="Divergences",
    )
    domains = list(dict.fromkeys(d for row in head.loss_by_domain.values() for d in row))
    losses = table(
        "Loss and entropy on the calibration text, nats a token",
        ["Model", "Loss", "Entropy", *(tag("bdi", d) for d in domains)],
        [
            [
                name(model.name),
                measured(head.loss.get(model.name)),
                measured(head.entropy.get(model.name)),
                *(number(head.loss_by_domain.get(model.name, {}).get(d)) for d in domains),
            ]
            for model in evaluation.models
            if model.name in head.loss or model.name in head.entropy
        ],
        label="Loss and entropy",
    )
    by_domain = list(dict.fromkeys(d for each in head.divergences for d in each.kl_by_domain))
    body = [
        tag("div", [figure(chart, DEFINITIONS[chart.key].text) for chart in drawn], class_="pair"),
        divergences if rows else None,
        table(
            "KL by domain, nats",
            ["Model", *(tag("bdi", d) for d in by_domain)],
            [[name(d.model), *(number(d.kl_by_domain.get(x)) for x in by_domain)] for d in head.divergences],
            label="KL by domain",
        )
        if by_domain
        else None,
        losses if head.loss or head.entropy else None,
    ]
    return Section("predictions", "Predictions", body, drawn)


def sentences(evaluation: Evaluation) -> Section | None:
    """Likeness of an encoder's sentence vectors."""
    found = evaluation.activations.sentences if evaluation.activations else ()
    if not found:
        return None
    body = table(
        "The merge's sentence vectors (mean of the last hidden states) against each model's",
        ["Model", "Mean cosine", "Same nearest neighbour"],
        [[name(s.model), measured(s.cosine), measured(s.neighbour_agreement)] for s in found],
        label="Sentence vectors",
    )
    return Section("sentences", "Sentence vectors", [body])
