"""What the charts show: the values of an evaluation in the shapes that are drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from merge_models.evals.diagnostics.diagnostic import Diagnostic
from merge_models.evals.diagnostics.drawing import DotOfEachModel, HeatMap, LineOfEachParent, RatioByDepth
from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.report.escape import line
from merge_models.evals.report.numbers import percent
from merge_models.evals.report.shapes import (
    Band,
    Dots,
    Heat,
    Panel,
    Profile,
    Role,
    Rule,
    Series,
    Values,
)
from merge_models.evals.report.terms import O_INFORMATION, REPAIR
from merge_models.evals.schema import (
    Estimate,
    Evaluation,
    OInformation,
    SiteActivations,
    SiteStatistics,
    TensorWeights,
)

SITES: dict[str, str] = {
    "residual": "Residual stream",
    "attention": "Attention output",
    "mlp": "MLP output",
    "embedding": "Embedding",
    "module": "Module outputs",
}
MOST_KINDS = 40
RATIO_SPAN = (0.8, 1.2)


# Activations by depth


def _ratio(value: float | None, mean: float | None) -> float | None:
    return value / mean if value is not None and mean else None


def weighted_mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Returns the mean of what is defined, by weight; None when nothing is."""
    known = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
    total = sum(w for _, w in known)
    return sum(v * w for v, w in known) / total if total else None


def parent_weights(evaluation: Evaluation) -> list[float]:
    """Returns the parents' weights, equal where they are not told."""
    weights = [parent.weight for parent in evaluation.parents]
    return [1.0 if w is None else w for w in weights] if any(weights) else [1.0] * len(weights)


@dataclass(frozen=True)
class Depth:
    """Where the sites of a model stand: positions with their labels, and each kind of site's records."""

    labels: tuple[str, ...]
    sites: dict[str, tuple[SiteActivations | None, ...]]
    named: bool
    """Positions are modules in order, not layers: the model has no stack, or several sites a layer."""

    @property
    def word(self) -> str:
        """What a position is."""
        return "module" if self.named else "layer"


def depth_of(sites: Iterable[SiteActivations]) -> Depth:
    """Sorts sites by kind and layer. A net without layers keeps the order of its modules."""
    inner = [site for site in sites if site.site != "embedding"]
    keys = [(site.site, site.layer) for site in inner]
    named = any(layer is None for _, layer in keys) or len(set(keys)) < len(keys)
    if named:
        labels = tuple(dict.fromkeys(site.module for site in inner))
        place = {label: at for at, label in enumerate(labels)}
        where = [place[site.module] for site in inner]
    else:
        layers = sorted({site.layer for site in inner if site.layer is not None})
        labels = tuple(map(str, layers))
        where = [layers.index(site.layer) for site in inner if site.layer is not None]
    table: dict[str, list[SiteActivations | None]] = {}
    for kind in SITES:
        if any(site.site == kind for site in inner):
            table[kind] = [None] * len(labels)
    for at, site in zip(where, inner, strict=True):
        table[site.site][at] = site
    return Depth(labels, {kind: tuple(row) for kind, row in table.items()}, named)


def estimates(row: Sequence[SiteActivations | None], field: str) -> tuple[Values, Values, Values]:
    """Returns values, lower and upper ends of an estimate along a row of sites."""
    found: list[Estimate | None] = [getattr(site, field) if site else None for site in row]
    return (
        tuple(e.value if e else None for e in found),
        tuple(e.low if e else None for e in found),
        tuple(e.high if e else None for e in found),
    )


def _relative(
    row: Sequence[SiteActivations | None], field: str, weights: list[float], pick: Callable[..., object]
) -> Values:
    """A statistic of one model over the parents' weighted mean of it."""

    def one(site: SiteActivations | None) -> float | None:
        if site is None:
            return None
        mean = weighted_mean([getattr(parent, field) for parent in site.parents], weights)
        chosen = pick(site)
        return _ratio(getattr(chosen, field), mean) if isinstance(chosen, SiteStatistics) else None

    return tuple(map(one, row))


def _range(columns: Sequence[Values]) -> tuple[Values, Values]:
    known = [[v for v in values if v is not None] for values in zip(*columns, strict=True)]
    return tuple(min(v) if v else None for v in known), tuple(max(v) if v else None for v in known)


def _site_panel(
    evaluation: Evaluation, kind: str, row: Sequence[SiteActivations | None], ratio: str, field: str
) -> Panel:
    weights = parent_weights(evaluation)
    values, low, high = estimates(row, ratio)
    lines = [Series(evaluation.merge.name, "merge", 0, values, low, high)]
    base = _relative(row, field, weights, lambda site: site.base)
    if evaluation.base is not None and any(v is not None for v in base):
        lines.append(Series(evaluation.base.name, "base", 0, base))
    each = [_relative(row, field, weights, lambda site, n=n: site.parents[n]) for n in range(len(weights))]
    bands = (Band("parents", *_range(each)),) if each else ()
    return Panel(SITES[kind], tuple(lines), bands)


def _thresholds(evaluation: Evaluation, cause: str) -> tuple[Rule, ...]:
    findings = evaluation.verdict.findings if evaluation.verdict else ()
    limits = {
        f.threshold: f"{f.status} {'above' if f.value is not None and f.value > f.threshold else 'below'}"
        for f in findings
        if f.cause == cause and f.threshold is not None and f.status != "healthy"
    }
    return tuple(Rule(value, label, True) for value, label in sorted(limits.items()))


def _flagged(evaluation: Evaluation, depth: Depth, cause: str) -> tuple[int, ...]:
    if depth.named or evaluation.verdict is None:
        return ()
    layers = {
        str(n)
        for f in evaluation.verdict.findings
        if f.cause == cause and f.status != "healthy"
        for n in f.layers
    }
    return tuple(at for at, label in enumerate(depth.labels) if label in layers)


def activation_profiles(evaluation: Evaluation) -> list[Profile]:
    """Returns a chart of each diagnostic of sites that is drawn: ratios with the parents' bands, then
    likeness."""
    if evaluation.activations is None:
        return []
    depth = depth_of(evaluation.activations.sites)
    charts = []
    for diagnostic in shown("site"):
        drawing = diagnostic.drawing
        if isinstance(drawing, RatioByDepth):
            charts.append(_ratio_profile(evaluation, depth, diagnostic, drawing))
        elif isinstance(drawing, LineOfEachParent):
            charts.append(_likeness(evaluation, depth, diagnostic, drawing))
    return [chart for chart in charts if defined(chart)]


def _ratio_profile(
    evaluation: Evaluation, depth: Depth, diagnostic: Diagnostic, drawing: RatioByDepth
) -> Profile:
    panels = tuple(
        _site_panel(evaluation, kind, row, diagnostic.key, drawing.statistic)
        for kind, row in depth.sites.items()
    )
    limits = _thresholds(evaluation, drawing.cause)
    return ratio_profile(
        diagnostic,
        drawing,
        depth.labels,
        panels,
        depth.word,
        limits,
        _flagged(evaluation, depth, drawing.cause),
    )


def ratio_profile(
    diagnostic: Diagnostic,
    drawing: RatioByDepth,
    labels: tuple[str, ...],
    panels: tuple[Panel, ...],
    word: str,
    limits: tuple[Rule, ...] = (),
    flagged: tuple[int, ...] = (),
) -> Profile:
    """Returns a chart of ratios to the parents' mean.

    Args:
        diagnostic, drawing: of what.
        labels: of the positions; ``word``: what a position is.
        panels: one a kind of site.
        limits: thresholds that decided; ``flagged``: positions that findings name.
    """
    return Profile(
        diagnostic.key,
        drawing.title,
        "ratio to the parents' mean",
        labels,
        panels,
        (Rule(1.0, "parents' mean"), *limits),
        flagged,
        word,
        low=0.0,
        span=RATIO_SPAN,
        caption=diagnostic.definition,
        short=drawing.short,
    )


def _likeness(
    evaluation: Evaluation, depth: Depth, diagnostic: Diagnostic, drawing: LineOfEachParent
) -> Profile:
    def values(row: Sequence[SiteActivations | None], n: int) -> Values:
        per_site = [getattr(site, diagnostic.key) if site else () for site in row]
        return tuple(each[n] if n < len(each) else None for each in per_site)

    panels = tuple(
        Panel(
            SITES[kind],
            tuple(Series(p.name, "parent", n, values(row, n)) for n, p in enumerate(evaluation.parents)),
        )
        for kind, row in depth.sites.items()
    )
    return Profile(
        diagnostic.key,
        drawing.title,
        drawing.axis,
        depth.labels,
        panels,
        depth=depth.word,
        low=drawing.low,
        high=drawing.high,
        caption=diagnostic.definition,
    )


def defined(chart: Profile) -> bool:
    """Returns whether any line of the chart has a value."""
    return any(v is not None for panel in chart.panels for series in panel.series for v in series.values)


# Predictions


def divergence_charts(evaluation: Evaluation) -> list[Dots]:
    """Returns a chart of each drawn distance of the merge's predictions from each model's."""
    head = evaluation.activations.head if evaluation.activations else None
    if head is None or not head.divergences:
        return []
    order = {parent.name: n for n, parent in enumerate(evaluation.parents)}
    charts = []
    for diagnostic in shown("divergence"):
        drawing = diagnostic.drawing
        if not isinstance(drawing, DotOfEachModel):
            continue
        estimates_: list[Estimate] = [getattr(d, diagnostic.key) for d in head.divergences]
        reference = getattr(head, drawing.reference[0]) if drawing.reference else None
        charts.append(
            Dots(
                diagnostic.key,
                drawing.title,
                drawing.axis,
                tuple(d.model for d in head.divergences),
                tuple(e.value for e in estimates_),
                tuple(e.low for e in estimates_),
                tuple(e.high for e in estimates_),
                tuple("parent" if d.model in order else "base" for d in head.divergences),
                tuple(order.get(d.model, 0) for d in head.divergences),
                (Rule(reference, drawing.reference[1]),)
                if drawing.reference and reference is not None
                else (),
                diagnostic.definition,
            )
        )
    return charts


# Weights


def short_kind(kind: str) -> str:
    """Returns a kind without what says nothing: the ``.weight`` at its end."""
    return kind.removesuffix(".weight")


def _fold(tensors: Sequence[TensorWeights]) -> Callable[[str], str]:
    """How kinds are named: as they are, or numbers (experts) folded into one row when there are too many."""
    if len({t.kind for t in tensors}) <= MOST_KINDS:
        return short_kind
    return lambda kind: re.sub(r"\d+", "*", short_kind(kind))


def weight_heats(evaluation: Evaluation) -> list[Heat]:
    """Returns a map of each drawn diagnostic of tensors that has values, of the tensors that lie in
    layers."""
    if evaluation.weights is None:
        return []
    tensors = [t for t in evaluation.weights.tensors if t.layer is not None]
    fold = _fold(tensors)
    columns = tuple(sorted({t.layer for t in tensors if t.layer is not None}))
    charts = (
        _heat(tensors, diagnostic, diagnostic.drawing, fold, columns, len(evaluation.parents))
        for diagnostic in shown("tensor")
        if isinstance(diagnostic.drawing, HeatMap)
    )
    return [chart for chart in charts if chart is not None]


def _heat(
    tensors: Sequence[TensorWeights],
    diagnostic: Diagnostic,
    drawing: HeatMap,
    fold: Callable[[str], str],
    columns: tuple[int, ...],
    parents: int,
) -> Heat | None:
    cells: dict[str, dict[int, list[float]]] = {}
    for tensor in tensors:
        value = getattr(tensor, diagnostic.key)
        if value is not None and tensor.layer is not None:
            cells.setdefault(fold(tensor.kind), {}).setdefault(tensor.layer, []).append(value)
    if not cells:
        return None
    kept = list(cells)[:MOST_KINDS]
    values = tuple(tuple(median(cells[k][n]) if n in cells[k] else None for n in columns) for k in kept)
    return Heat(
        f"weight_{diagnostic.key}",
        diagnostic.label,
        tuple(kept),
        columns,
        values,
        drawing.scale.up_to(parents),
        diagnostic.definition,
    )


# Information


def information_profile(evaluation: Evaluation) -> Profile | None:
    """Returns O-information by depth: between parents and merge with its null, and within each model."""
    information = evaluation.information
    if information is None:
        return None
    systems = [*information.between, *(o for row in information.within.values() for o in row)]
    layers = sorted({o.layer for o in systems if o.layer is not None})
    if not layers:
        return None
    panels = []
    if any(o.o_information for o in information.between):
        line_, band = _system(information.between, layers, "parents and merge", "merge", 0)
        panels.append(Panel("Between parents and merge", (line_,), (band,) if band else ()))
    if any(o.o_information for row in information.within.values() for o in row):
        roles: dict[str, Role] = {model.name: model.role for model in evaluation.models}
        place = {parent.name: n for n, parent in enumerate(evaluation.parents)}
        lines = [
            _system(row, layers, model, roles.get(model, "base"), place.get(model, 0))[0]
            for model, row in information.within.items()
        ]
        panels.append(Panel("Within layers of each model", tuple(lines)))
    chart = Profile(
        "o_information",
        "O-information",
        "nats",
        tuple(map(str, layers)),
        tuple(panels),
        (Rule(0.0, "neither"),),
        caption=O_INFORMATION.definition,
    )
    return chart if panels else None


def _system(
    row: Sequence[OInformation], layers: list[int], name: str, role: Role, index: int
) -> tuple[Series, Band | None]:
    by_layer = {o.layer: o for o in row}
    at = [by_layer.get(layer) for layer in layers]
    values = [o.o_information if o else None for o in at]
    series = Series(
        name,
        role,
        index,
        tuple(e.value if e else None for e in values),
        tuple(e.low if e else None for e in values),
        tuple(e.high if e else None for e in values),
    )
    null = [
        (o.null_mean, o.null_std) if o and o.null_mean is not None and o.null_std is not None else None
        for o in at
    ]
    if not any(null):
        return series, None
    low = tuple(n[0] - 2 * n[1] if n else None for n in null)
    high = tuple(n[0] + 2 * n[1] if n else None for n in null)
    return series, Band("shuffle null", low, high)


# Repair


def repair_profile(evaluation: Evaluation) -> Profile | None:
    """Returns the variance ratio of each repaired module, before and after."""
    report = evaluation.repair
    if report is None or not report.layers:
        return None
    before = Series("before", "base", 0, tuple(layer.variance_ratio_before for layer in report.layers))
    after = Series("after", "merge", 0, tuple(layer.variance_ratio_after for layer in report.layers))
    chart = Profile(
        "repair",
        "Variance ratio of repaired modules",
        "ratio to the parents' mean",
        tuple(layer.module for layer in report.layers),
        (Panel("Variance ratio of repaired modules", (after, before)),),
        (Rule(1.0, "parents' mean"),),
        depth="module",
        low=0.0,
        span=RATIO_SPAN,
        caption=REPAIR.definition,
    )
    return chart if defined(chart) else None


def describe(chart: Profile) -> str:
    """Returns the chart in a sentence, for those who do not see it: each panel's first line, its range and
    where."""
    parts = []
    for panel in chart.panels:
        for series in panel.series:
            known = [
                (v, label) for v, label in zip(series.values, chart.positions, strict=True) if v is not None
            ]
            if known:
                low, high = min(known), max(known)
                parts.append(
                    f"{panel.title}, {line(series.name)}: from {low[0]:.3g} at {chart.depth} {line(low[1])} "
                    f"to {high[0]:.3g} at {chart.depth} {line(high[1])}"
                )
            if series.role != "parent":
                break
    return f"{chart.title} by {chart.depth}. " + "; ".join(parts[:12]) + "."


def coverage(heat: Heat) -> str:
    """Returns a heat map in a sentence."""
    known = [v for row in heat.values for v in row if v is not None]
    off = sum(1 for v in known if not 0.85 <= v <= 1.18) / len(known)
    told = f"; {percent(off)} of the tensors are more than 15 % off 1" if heat.scale.middle == 1 else ""
    return f"{heat.title} by kind of tensor and layer: from {min(known):.3g} to {max(known):.3g}{told}."
