"""The sections of the page, each from one part of an evaluation; a part that is missing gives none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from merge_models.evals.report import charts
from merge_models.evals.report.charts import Chart, Dots, Heat, Profile
from merge_models.evals.report.definitions import DEFINITIONS
from merge_models.evals.report.facts import (
    STATUS_MARKS,
    STATUS_WORDS,
    conclusion,
    facts,
    missing,
    model_counts,
    not_finite,
    refusals,
)
from merge_models.evals.report.html import Html, details, name, prose, table, tag
from merge_models.evals.report.numbers import UNDEFINED, count, interval, measured, number, percent, ranges
from merge_models.evals.schema import (
    ActivationDiagnosis,
    Evaluation,
    Finding,
    Generation,
    Recovery,
    Status,
    TaskDiagnosis,
    TaskScore,
    Verdict,
)


class Section(NamedTuple):
    """A part of the page: its anchor, heading, markup, and the charts that the page draws in it."""

    key: str
    heading: str
    body: Sequence[object]
    charts: Sequence[Chart] = ()


def sections(evaluation: Evaluation) -> list[Section]:
    """Everything that the evaluation holds, after the verdict."""
    makers: tuple[Callable[[Evaluation], Section | None], ...] = (
        activations,
        predictions,
        sentences,
        tasks,
        generation,
        weights,
        information,
        repair,
        method,
    )
    return [section for make in makers if (section := make(evaluation)) is not None]


# The verdict


def badge(status: Status) -> Html:
    """A status by mark, word and colour, so that colour is never alone."""
    mark = tag("span", STATUS_MARKS[status], class_="mark", aria_hidden="true")
    return tag("span", mark, STATUS_WORDS[status], class_=f"badge {status}")


def _finding_badge(status: Status) -> Html:
    """A finding that decides nothing is a remark, not a clean bill of health."""
    return tag("span", "Remark", class_="badge remark") if status == "healthy" else badge(status)


def verdict(evaluation: Evaluation) -> Html:
    """What a reader must know, on the first screen."""
    found = evaluation.verdict
    parents = [name(parent.name) for parent in evaluation.parents]
    origin = tag(
        "p",
        "Merge of ",
        _listed(parents),
        [", base ", name(evaluation.base.name)] if evaluation.base else None,
        class_="origin",
    )
    head = tag("h1", name(evaluation.merge.name))
    if found is None:
        return tag("div", head, origin, _fact_list(evaluation), class_="verdict none")
    score = f"score {number(found.score)}, " if found.score is not None else ""
    line = tag("p", badge(found.status), " ", tag("span", f"{score}judged by {found.basis}", class_="basis"))
    summary = conclusion(found)
    return tag(
        "div",
        head,
        origin,
        line,
        tag("p", prose(summary), class_="summary") if summary else None,
        _fact_list(evaluation),
        _findings(found),
        _by_layer(found),
        _by_skill(found),
        class_=f"verdict {found.status}",
    )


def _listed(items: Sequence[Html]) -> list[object]:
    joined: list[object] = []
    for n, item in enumerate(items):
        if n:
            joined.append(" and " if n == len(items) - 1 else ", ")
        joined.append(item)
    return joined


def _fact_list(evaluation: Evaluation) -> Html | None:
    told = facts(evaluation)[:6]
    if not told:
        return None
    return tag(
        "dl",
        [
            tag("div", tag("dt", fact.label), tag("dd", tag("b", fact.value), tag("small", prose(fact.note))))
            for fact in told
        ],
        class_="facts",
    )


def _findings(found: Verdict) -> Html | None:
    if not found.findings:
        return tag("p", "No finding: every measured quantity is within its threshold.", class_="quiet")
    return tag(
        "section",
        tag("h2", "Findings", id="findings"),
        tag("ol", [tag("li", _finding(finding), class_=finding.status) for finding in found.findings]),
        class_="findings",
        aria_labelledby="findings",
    )


def _finding(finding: Finding) -> list[Html]:
    cause = finding.cause[:1].upper() + finding.cause[1:]
    decided = decision(finding)
    return [
        tag("h3", cause, " ", _finding_badge(finding.status)),
        tag("p", tag("span", prose(location(finding)), class_="where"), " ", prose(finding.evidence)),
        tag(
            "dl",
            tag("dt", "Threshold" if decided else "Source"),
            tag("dd", decided, " (" if decided else None, prose(finding.source), ")" if decided else None),
            tag("dt", "Remedy"),
            tag("dd", prose(finding.remedy)),
        ),
    ]


def location(finding: Finding) -> str:
    """Where it was found, as the opening of a sentence."""
    where = finding.where.rstrip(". ")
    return f"{where[:1].upper()}{where[1:]}:" if where else ""


def decision(finding: Finding) -> str:
    """What was compared with what; empty for a finding without a threshold."""
    if finding.threshold is None:
        return ""
    measured_ = f"measured {number(finding.value)}, " if finding.value is not None else ""
    return f"{measured_}threshold {number(finding.threshold)}"


def _by_layer(found: Verdict) -> Html | None:
    if not found.by_layer:
        return None
    groups = {
        status: tuple(layer for layer, s in found.by_layer.items() if s == status) for status in STATUS_WORDS
    }
    words = "; ".join(f"{status}: {ranges(layers)}" for status, layers in groups.items() if layers)
    cells = [
        tag("i", class_=status, title=f"layer {layer}: {status}")
        for layer, status in sorted(found.by_layer.items())
    ]
    strip = tag("div", cells, class_="strip", aria_hidden="true")
    return tag("section", tag("h2", "By layer"), strip, tag("p", words, class_="quiet"), class_="by")


def _by_skill(found: Verdict) -> Html | None:
    if not found.by_skill:
        return None
    items = [tag("li", badge(status), " ", name(skill)) for skill, status in found.by_skill.items()]
    return tag("section", tag("h2", "By skill"), tag("ul", items, class_="skills"), class_="by")


# Charts and the tables beside them


def figure(chart: Chart, caption: object = None) -> Html:
    """A chart's place, its words for those who do not see it, and its table."""
    told, alternative = _told(chart)
    return tag(
        "figure",
        tag("h3", chart.title),
        tag("figcaption", caption) if caption else None,
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
    """A row a position; a column a line and band."""
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
    """A row a layer, a column a kind of tensor."""
    rows = [
        [str(layer), *(number(chart.values[k][at]) for k in range(len(chart.rows)))]
        for at, layer in enumerate(chart.columns)
    ]
    return table(None, ["Layer", *map(name, chart.rows)], rows, label=chart.title)


def dots_table(chart: Dots) -> Html:
    """A row a model."""
    rows = [
        [name(row), number(value), f"{number(low)} to {number(high)}" if low is not None else UNDEFINED]
        for row, value, low, high in zip(chart.rows, chart.values, chart.low, chart.high, strict=True)
    ]
    return table(None, ["Model", chart.label, "95 % interval"], rows, label=chart.title)


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


# Tasks


def tasks(evaluation: Evaluation) -> Section | None:
    """Scores with recovery; the mean never without the minimum."""
    found = evaluation.tasks
    if found is None or not (found.scores or found.recovery):
        return None
    body = [_recovery_line(found), score_table(evaluation, found)]
    return Section("tasks", "Tasks", body)


def _recovery_line(found: TaskDiagnosis) -> Html | None:
    if found.mean_recovery is None and found.least_recovery is None:
        return None
    least = [" (", name(found.least_recovered), ")"] if found.least_recovered else None
    return tag(
        "p",
        "Mean recovery ",
        tag("b", percent(found.mean_recovery)),
        "; least ",
        tag("b", percent(found.least_recovery)),
        least,
        ". ",
        DEFINITIONS["recovery"].text,
    )


def score_rows(found: TaskDiagnosis) -> list[tuple[TaskScore, dict[str, TaskScore], Recovery | None]]:
    """(any score of the task, scores by model, recovery) for each task and metric, in order."""
    grouped: dict[tuple[str, str], dict[str, TaskScore]] = {}
    for score in found.scores:
        grouped.setdefault((score.task, score.metric), {})[score.model] = score
    recovered = {(r.task, r.metric): r for r in found.recovery}
    return [(next(iter(by.values())), by, recovered.get(key)) for key, by in grouped.items()]


def score_table(evaluation: Evaluation, found: TaskDiagnosis) -> Html:
    """A row a task; the best model of each row in bold."""
    rows = []
    for first, by_model, recovery in score_rows(found):
        values = {model: score.score.value for model, score in by_model.items()}
        best = (max if first.higher_is_better else min)(values.values())
        arrow = "↑" if first.higher_is_better else "↓"
        task = [name(first.task), " ", tag("small", f"{first.metric} {arrow}, n = {first.n:,}")]
        merge, *others = (_score(by_model.get(model.name), best) for model in evaluation.models)
        rows.append([task, merge, _meter(recovery.fraction if recovery else None), *others])
    merge_name, *other_names = (name(model.name) for model in evaluation.models)
    head = ["Task", merge_name, "Recovery", *other_names]
    return table("Scores with 95 % intervals; the best of each row in bold", head, rows, label="Task scores")


def _score(score: TaskScore | None, best: float) -> list[object]:
    if score is None:
        return [UNDEFINED]
    shown = number(score.score.value)
    spread = interval(score.score)
    return [
        tag("b", shown) if score.score.value == best else shown,
        tag("small", " ", spread) if spread else None,
    ]


def _meter(share: float | None) -> Html:
    """A share as a number over a small bar; the bar is a picture only."""
    if share is None:
        return Html(UNDEFINED)
    width = 100 * min(max(share, 0.0), 1.0)
    bar = tag("span", tag("span", style=f"width:{width:.0f}%"), class_="meter", aria_hidden="true")
    return tag("span", percent(share), bar)


def generation(evaluation: Evaluation) -> Section | None:
    """Counters of degenerate text, and samples to read."""
    found = evaluation.tasks.generation if evaluation.tasks else ()
    if not found:
        return None
    counters = table(
        DEFINITIONS["generation"].text,
        ["Model", "Continuations", "Empty", "Looping", "Low distinct-2", "Mean distinct-2"],
        [
            [
                name(g.model),
                f"{g.n:,}",
                percent(g.empty),
                percent(g.looping),
                percent(g.low_distinct),
                number(g.distinct2),
            ]
            for g in found
        ],
        label="Generated text",
    )
    return Section("generation", "Generated text", [counters, [_samples(g, evaluation) for g in found]])


def _samples(g: Generation, evaluation: Evaluation) -> Html | None:
    if not g.samples:
        return None
    items = [
        tag("li", tag("span", prompt, class_="prompt"), tag("span", text or "(empty)"), dir="auto")
        for prompt, text in g.samples
    ]
    return details(
        ["Samples of ", name(g.model)],
        tag("ul", items, class_="samples"),
        open=g.model == evaluation.merge.name,
    )


# Weights, information, repair


def weights(evaluation: Evaluation) -> Section | None:
    """Heat maps of tensor kind by depth, the whole model's figures, tensors outside the stack."""
    found = evaluation.weights
    if found is None:
        return None
    drawn = charts.weight_heats(evaluation)
    shares = [
        [
            name(parent.name),
            number(parent.weight),
            number(found.parent_share[n])
            if found.parent_share and n < len(found.parent_share)
            else UNDEFINED,
            number(found.delta_norms[n]) if found.delta_norms and n < len(found.delta_norms) else UNDEFINED,
            *(number(v) for v in (found.cosine[n] if found.cosine and n < len(found.cosine) else ())),
        ]
        for n, parent in enumerate(evaluation.parents)
    ]
    cosines = [["Cosine to ", name(p.name)] for p in evaluation.parents] if found.cosine else []
    body = [
        tag("p", "Weights are a screening: they need no forward pass, and activations decide."),
        _whole(evaluation),
        table(
            "Parents in the merge" + (" (cosines between deltas)" if evaluation.base else ""),
            ["Parent", "Weight", "Share in the merge", "Delta norm over base", *cosines],
            shares,
            label="Parents in the merge",
        ),
        tag("div", [figure(chart, _heat_caption(chart)) for chart in drawn], class_="grid"),
        _outside(evaluation),
    ]
    return Section("weights", "Weights", body, drawn)


def _heat_caption(chart: Heat) -> str:
    field = chart.key.removeprefix("weight_")
    key = "weight_effective_rank_ratio" if field == "effective_rank_ratio" else field
    return DEFINITIONS[key].text


def _whole(evaluation: Evaluation) -> Html | None:
    found = evaluation.weights
    if found is None:
        return None
    told = [
        ("Norm ratio", number(found.norm_ratio)),
        ("Delta norm ratio", number(found.delta_norm_ratio)),
        ("Sign conflict", percent(found.sign_conflict)),
        ("Effective parents", number(found.effective_parents)),
        ("Outside the parents' span", percent(found.unexplained)),
    ]
    known = [(label, value) for label, value in told if value != UNDEFINED]
    return (
        tag("dl", [tag("div", tag("dt", a), tag("dd", tag("b", b))) for a, b in known], class_="facts small")
        if known
        else None
    )


def _outside(evaluation: Evaluation) -> Html | None:
    """Tensors that no heat map shows: embedding, final norm, head."""
    found = [t for t in evaluation.weights.tensors if t.layer is None] if evaluation.weights else []
    if not found:
        return None
    rows = [
        [
            name(t.name),
            " × ".join(map(str, t.shape)) or "scalar",
            number(t.norm_ratio),
            number(t.delta_norm_ratio),
            number(t.effective_rank_ratio),
            percent(t.sign_conflict),
            number(t.effective_parents),
            "yes" if t.finite else "no",
        ]
        for t in found[:200]
    ]
    head = [
        "Tensor",
        "Shape",
        "Norm",
        "Delta norm",
        "Effective rank",
        "Sign conflict",
        "Effective parents",
        "Finite",
    ]
    caption = "Tensors outside the layers" + (f", the first 200 of {len(found)}" if len(found) > 200 else "")
    return table(caption, head, rows, label="Tensors outside the layers")


def information(evaluation: Evaluation) -> Section | None:
    """O-information by depth."""
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
    body = [figure(chart, DEFINITIONS["o_information"].text), readings if rows else None]
    return Section("information", "Information", body, [chart])


def repair(evaluation: Evaluation) -> Section | None:
    """Before and after."""
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
        figure(chart, DEFINITIONS["repair"].text) if chart else tag("p", DEFINITIONS["repair"].text),
    ]
    return Section("repair", "Repair", body, [chart] if chart else [])


# How it was measured


def method(evaluation: Evaluation) -> Section:
    """Models, calibration, seeds, versions, definitions, and what is missing."""
    lacking = [*missing(evaluation), *refusals(evaluation), *evaluation.notes]
    broken = not_finite(evaluation)
    if broken:
        lacking.append(f"NaN or Inf in the merge: {', '.join(broken[:8])}{' …' if len(broken) > 8 else ''}.")
    body = [
        tag("h3", "What is missing") if lacking else None,
        tag("ul", [tag("li", prose(sentence)) for sentence in lacking]) if lacking else None,
        tag("h3", "Models"),
        table(
            None,
            ["Model", "Role", "Weight", "Parameters"],
            [[name(m.name), m.role, number(m.weight), number(m.parameters)] for m in evaluation.models],
            words=(1,),
            label="Models",
        ),
        _calibration(evaluation),
        tag("h3", "Definitions"),
        tag(
            "dl",
            [[tag("dt", DEFINITIONS[k].label), tag("dd", DEFINITIONS[k].text)] for k in _used(evaluation)],
            class_="definitions",
        ),
        tag(
            "p",
            f"Made {evaluation.created} with ",
            ", ".join(f"{package} {number_}" for package, number_ in evaluation.versions.items())
            or "merge-models",
            f"; report schema {evaluation.schema_version}. {model_counts(evaluation).capitalize()}. ",
            "Every number of this page is in report.json.",
            class_="quiet",
        ),
    ]
    return Section("method", "How it was measured", body)


def _calibration(evaluation: Evaluation) -> list[Html]:
    found = evaluation.activations
    if found is None:
        return []
    c = found.calibration
    facts_ = [
        ("Source", name(c.source)),
        ("SHA-256 of the text", tag("code", c.digest)),
        ("Tokens", f"{c.tokens:,} in {c.sequences:,} sequences, the first of each left out"),
        ("Domains", ", ".join(f"{domain} {n:,}" for domain, n in c.domains.items()) or "one"),
        ("Seed", str(c.seed)),
        ("Sample", f"{found.sample:,} tokens for CKA, drift and O-information{_spectrum(found)}"),
        ("Time", f"{number(found.seconds)} s for activations" + _weight_time(evaluation)),
    ]
    listed = [[tag("dt", label), tag("dd", value)] for label, value in facts_]
    return [tag("h3", "Calibration text"), tag("dl", listed, class_="definitions")]


def _spectrum(found: ActivationDiagnosis) -> str:
    return f"; spectra of {found.spectrum_tokens:,} tokens" if found.spectrum_tokens else ""


def _weight_time(evaluation: Evaluation) -> str:
    return f", {number(evaluation.weights.seconds)} s for weights" if evaluation.weights else ""


def _used(evaluation: Evaluation) -> Iterable[str]:
    """Definitions of what tables and verdict use; a chart brings its own."""
    if evaluation.verdict and evaluation.verdict.score is not None:
        yield "score"
    if evaluation.activations is not None:
        yield from ("variance_ratio", "effective_rank_ratio")
        if evaluation.activations.head is not None:
            yield from ("loss", "kl", "js", "fisher_rao", "top1_agreement")
    if evaluation.tasks is not None:
        yield from ("recovery", "generation")
    if evaluation.weights is not None:
        yield from ("sign_conflict", "effective_parents", "unexplained")
    if evaluation.information is not None:
        yield "o_information"
