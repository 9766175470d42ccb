"""How it was measured: models, text, seeds, versions, definitions."""

from __future__ import annotations

from collections.abc import Iterator

from merge_models.evals.diagnostics.diagnostic import Place
from merge_models.evals.diagnostics.registry import shown
from merge_models.evals.report.facts import (
    missing,
    model_counts,
    not_finite,
    refusals,
)
from merge_models.evals.report.html import Html, name, prose, table, tag
from merge_models.evals.report.numbers import number
from merge_models.evals.report.sections.figures import Section
from merge_models.evals.report.terms import GENERATION, O_INFORMATION, RECOVERY, SCORE
from merge_models.evals.schema import (
    ActivationDiagnosis,
    Evaluation,
)


def method(evaluation: Evaluation) -> Section:
    """Returns the section on models, calibration, seeds, versions, definitions, and what is missing."""
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
            [[tag("dt", label), tag("dd", text)] for label, text in _definitions(evaluation)],
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
    activations = evaluation.activations
    if activations is None:
        return []
    c = activations.calibration
    facts_ = [
        ("Source", name(c.source)),
        ("SHA-256 of the text", tag("code", c.digest)),
        ("Tokens", f"{c.tokens:,} in {c.sequences:,} sequences, the first of each left out"),
        ("Domains", ", ".join(f"{domain} {n:,}" for domain, n in c.domains.items()) or "one"),
        ("Seed", str(c.seed)),
        ("Sample", f"{activations.sample:,} tokens for CKA, drift and O-information{_spectrum(activations)}"),
        ("Time", f"{number(activations.seconds)} s for activations" + _weight_time(evaluation)),
    ]
    listed = [[tag("dt", label), tag("dd", value)] for label, value in facts_]
    return [tag("h3", "Calibration text"), tag("dl", listed, class_="definitions")]


def _spectrum(found: ActivationDiagnosis) -> str:
    return f"; spectra of {found.spectrum_tokens:,} tokens" if found.spectrum_tokens else ""


def _weight_time(evaluation: Evaluation) -> str:
    return f", {number(evaluation.weights.seconds)} s for weights" if evaluation.weights else ""


def _definitions(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Labels and definitions of all that was measured: first what the verdict rests on, then each
    diagnostic."""
    if evaluation.verdict and evaluation.verdict.score is not None:
        yield SCORE
    activations, tasks = evaluation.activations, evaluation.tasks
    if tasks is not None:
        yield from (RECOVERY, GENERATION)
    if evaluation.information is not None:
        yield O_INFORMATION
    measured: dict[Place, object] = {
        "site": activations,
        "statistics": activations,
        "head": activations and activations.head,
        "divergence": activations and activations.head,
        "sentence": activations and activations.sentences,
        "text": tasks and tasks.generation,
        "tensor": evaluation.weights,
    }
    places: list[Place] = [place for place, part in measured.items() if part]
    used = [diagnostic for place in places for diagnostic in shown(place)]
    labels = [diagnostic.label for diagnostic in used]
    for diagnostic in used:
        several = labels.count(diagnostic.label) > 1
        yield (
            f"{diagnostic.label} ({diagnostic.depth})" if several else diagnostic.label,
            diagnostic.definition,
        )
