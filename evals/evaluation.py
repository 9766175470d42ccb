"""One call from folders to a verdict: files are read, then one model at a time is shown to every measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any

from merge_models.evals.inputs.lineage import Lineage, lineage, short_name, unique_names
from merge_models.evals.inputs.positions import fitting_length
from merge_models.evals.inputs.settings import USUAL_RUNNING, USUAL_TEXT, Merged, Name, Running, TextSample
from merge_models.evals.judgement.verdict import judged
from merge_models.evals.measures.activations.measure import Activations
from merge_models.evals.measures.measure import Measure, Measurement, Subject
from merge_models.evals.measures.tasks.measure import Tasks
from merge_models.evals.measures.weights.measure import Weights
from merge_models.evals.schema import Evaluation, ModelRef, Role
from merge_models.merge.errors import MergeError, printable

if TYPE_CHECKING:
    from merge_models.evals.inputs.calibration import Batches

MEASURES: tuple[Measure, ...] = (Weights(), Activations(), Tasks())
"""What is measured unless something else is asked for, from cheap to dear."""

_WITHOUT_TOKENIZER = "measure weights alone: --weights-only, measures=[Weights()]"


def evaluate(
    merged: Name | Merged,
    parents: Sequence[Name] = (),
    base: Name | None = None,
    *,
    weights: Sequence[float] | None = None,
    measures: Measure | Iterable[Measure] = MEASURES,
    text: TextSample = USUAL_TEXT,
    running: Running = USUAL_RUNNING,
) -> Evaluation:
    """Measures a merge against its parents and judges it.

    >>> evaluate("runs/merged").verdict.summary  # doctest: +SKIP
    'healthy; 1% of what the best parent of each domain knows is lost'
    >>> evaluate("runs/merged", ["runs/a", "runs/b"], measures=[Weights()])  # doctest: +SKIP

    Args:
        merged: folder or Hub id of the merge, also with an adapter (``MODEL+ADAPTER``), like all others; a
            ``Merged`` where more is known of it.
        parents: of its parents; by default those that its manifest names.
        base: of the model that the parents were tuned from, where there is one; by default the manifest's.
        weights: the parents' shares in every weighted mean [default: the recipe's where they are plain
            numbers, else equal].
        measures: what is measured, each with its settings.
        text: what models are run on.
        running: how: seed, device, threads, pickles, progress.

    Raises:
        MergeError: a model does not load, tokenizers differ, there is too little text, or the parents are not
            those of the merge.
    """
    asked = checked_measures(measures)
    merge = merged if isinstance(merged, Merged) else Merged(merged)
    family = lineage(merge.place, parents, base, weights, allow_pickle=running.allow_pickle)
    if merge.origins is not None:
        family = replace(family, origins=tuple(merge.origins))
    batches, notes = _batches(family, text, running) if any(m.runs_models for m in asked) else (None, ())
    evaluation = Evaluation(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=_versions(),
        models=_refs(family, merge.name),
        notes=(*family.notes, *notes),
    )
    names = frozenset(measure.name for measure in asked)
    subject = Subject(family, evaluation.models, batches, running, names)
    begun = [(measure, measure.begin(subject)) for measure in asked]
    results: dict[str, Any] = {}
    for measure, measurement in begun:
        if not measure.runs_models:
            results |= measurement.finish()
    at_work = [measurement for measure, measurement in begun if measure.runs_models]
    if at_work:
        _show_models(subject, at_work)
    for measurement in at_work:
        results |= measurement.finish()
    return judged(evaluation.model_copy(update=results))


def checked_measures(measures: Any) -> tuple[Measure, ...]:
    """Returns the measures one by one.

    Raises:
        MergeError: there is none, or something else among them.
    """
    single = isinstance(measures, str) or hasattr(measures, "begin")
    given: tuple[Any, ...] = (measures,) if single else tuple(measures)
    strange = [measure for measure in given if not hasattr(measure, "begin") or isinstance(measure, type)]
    if strange or not given:
        known = ", ".join(f"{type(measure).__name__}()" for measure in MEASURES)
        raise MergeError(f"cannot measure {strange or 'nothing'}; there are {known}")
    return given


def _refs(family: Lineage, name: str | None) -> tuple[ModelRef, ...]:
    """Merge, parents and base under unique short names."""
    folders = [name or family.merged, *family.parents, *([family.base] if family.base else [])]
    base_role: list[Role] = ["base"] if family.base else []
    parent_roles: list[Role] = ["parent"] * len(family.parents)
    roles: list[Role] = ["merge", *parent_roles, *base_role]
    shares = [None, *family.weights, *([None] if family.base else [])]
    names = unique_names([printable(short_name(f), 60) for f in folders])
    return tuple(
        ModelRef(name=name, role=role, weight=share)
        for name, role, share in zip(names, roles, shares, strict=True)
    )


def _batches(family: Lineage, text: TextSample, running: Running) -> tuple[Batches, tuple[str, ...]]:
    """The calibration text, tried on every tokenizer before anything is measured, and notes on it."""
    from merge_models.evals.inputs.calibration import (
        calibration_batches,
        check_same_tokenizer,
        read_calibration,
    )
    from merge_models.evals.inputs.models import check_device

    everyone = [family.merged, *family.parents, *([family.base] if family.base else [])]
    allow_pickle = running.allow_pickle
    length, notes = fitting_length(everyone, text.length, allow_pickle=allow_pickle)
    check_device(running.device)
    documents = read_calibration(text.source)
    tokenizer = check_same_tokenizer(everyone, documents, _WITHOUT_TOKENIZER, allow_pickle=allow_pickle)
    batches = calibration_batches(
        tokenizer, source=documents, tokens=text.tokens, length=length, seed=running.seed
    )
    return batches, notes


def _show_models(subject: Subject, at_work: Sequence[Measurement]) -> None:
    """Shows parents, base and merge to the measures, one in memory at a time."""
    from merge_models.evals.inputs.models import open_model

    family, running = subject.family, subject.running
    folders = [*family.parents, *([family.base] if family.base else []), family.merged]
    merge, *others = subject.models
    for ref, folder in zip([*others, merge], folders, strict=True):
        running.progress(f"{ref.role} {ref.name}")
        with open_model(folder, device=running.device, allow_pickle=running.allow_pickle) as loaded:
            for measurement in at_work:
                measurement.observe(ref, loaded.model, loaded.tokenizer)


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("merge-models", "torch", "transformers", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
