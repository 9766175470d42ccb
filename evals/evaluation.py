"""One call from folders to a verdict: weights streamed, then one model at a time through every probe."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from merge_models.evals.inputs.arguments import checked_count
from merge_models.evals.inputs.lineage import Lineage, lineage, short_name
from merge_models.evals.inputs.positions import LENGTH, fitting_length
from merge_models.evals.schema import Evaluation, ModelRef, Role
from merge_models.merge.errors import MergeError, printable

if TYPE_CHECKING:
    from merge_models.evals.inputs.calibration import Batches
    from merge_models.evals.inputs.models import Loaded
    from merge_models.evals.measures.probes import Probe
    from merge_models.evals.measures.tasks import TaskProbe, TaskSettings

Measure = Literal["weights", "activations", "information", "tasks"]
MEASURES: tuple[Measure, ...] = ("weights", "activations", "information", "tasks")
Name = str | os.PathLike[str]
_WITHOUT_TOKENIZER = "measure weights alone: --weights-only, measure=('weights',)"


def evaluate(
    merged: Name,
    parents: Sequence[Name] = (),
    base: Name | None = None,
    *,
    weights: Sequence[float] | None = None,
    measure: Measure | Collection[Measure] = MEASURES,
    data: Name = "built-in",
    tokens: int = 8192,
    length: int = LENGTH,
    tasks: TaskSettings | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
    name: str | None = None,
    origins: Sequence[Mapping[str, str]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Measures a merge against its parents and judges it.

    Args:
        merged: folder or Hub id of the merge, also with an adapter (``MODEL+ADAPTER``), like all others.
        parents: of its parents; by default those that its manifest names.
        base: of the model that the parents were tuned from, where there is one; by default the manifest's.
        weights: the parents' shares in every weighted mean [default: the recipe's where they are plain
            numbers, else equal].
        measure: which diagnostics to run; ``information`` needs ``activations``.
        data: calibration text: ``built-in``, or a ``.jsonl`` or text file.
        tokens: calibration tokens; ``length``: of a sequence, at most what the models take.
        tasks: what to score; by default degenerate text, and perplexity where activations are not measured.
        seed: of samples, shuffles and bootstraps; equal seeds give equal numbers.
        device: where models run [default: CPU].
        threads: for the weights' diagnosis [default: all cores].
        allow_pickle: read files of ``torch.save`` too; nothing of them is run.
        name: what the report calls the merge [default: its folder's name].
        origins: for each parent, and then the base, which of its tensors those of the merge came from, by
            name [default: the manifest's, where layers were put together anew; else those of the same name].
        progress: is called with a line as each step begins.

    Raises:
        MergeError: a model does not load, tokenizers differ, there is too little text, or the parents are not
            those of the merge.
    """
    measure = (measure,) if isinstance(measure, str) else tuple(measure)
    unknown = set(measure) - set(MEASURES)
    if unknown or not measure:
        raise MergeError(f"cannot measure {sorted(unknown) or 'nothing'}; there are {', '.join(MEASURES)}")
    tokens, length = checked_count(tokens, "tokens", 1), checked_count(length, "length", 1)
    seed = checked_count(seed, "seed")
    family = lineage(merged, parents, base, weights, allow_pickle=allow_pickle)
    refs = _refs(family, name)
    models = bool({"activations", "information", "tasks"} & set(measure))
    everyone = [family.merged, *family.parents, *([family.base] if family.base else [])]
    length, notes = fitting_length(everyone, length, allow_pickle=allow_pickle) if models else (length, ())
    evaluation = Evaluation(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=_versions(),
        models=refs,
        notes=(*family.notes, *notes),
    )
    batches = _batches(family, data, tokens, length, seed, device, allow_pickle) if models else None
    task_probe = _task_probe(batches, tasks, measure, seed) if batches else None
    if "weights" in measure:
        from merge_models.evals.measures.weights import diagnose_weights

        progress("weights")
        found = diagnose_weights(
            family.merged,
            family.parents,
            family.base,
            weights=family.weights,
            origins=family.origins if origins is None else origins,
            threads=threads,
            allow_pickle=allow_pickle,
        )
        evaluation = evaluation.model_copy(update={"weights": found})
    if batches is not None:
        from merge_models.evals.inputs.models import open_model

        opened = partial(open_model, device=device, allow_pickle=allow_pickle)
        evaluation = _run_models(evaluation, family, measure, batches, task_probe, seed, opened, progress)
    return judged(evaluation)


def judged(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its verdict, made from what the evaluation holds."""
    from merge_models.evals.judgement.verdict import foreign_text, judge

    notes = tuple(dict.fromkeys((*evaluation.notes, *foreign_text(evaluation))))
    return evaluation.model_copy(update={"verdict": judge(evaluation), "notes": notes})


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


def unique_names(names: Sequence[str]) -> list[str]:
    """``a, a, b`` become ``a, a (2), b``."""
    taken: set[str] = set()
    out = []
    for name in names:
        n, candidate = 1, name
        while candidate in taken:
            n += 1
            candidate = f"{name} ({n})"
        taken.add(candidate)
        out.append(candidate)
    return out


def _batches(
    family: Lineage,
    data: Name,
    tokens: int,
    length: int,
    seed: int,
    device: str | None,
    allow_pickle: bool,
) -> Batches:
    """The calibration text: read, and tried on every tokenizer, before anything is measured."""
    from merge_models.evals.inputs.calibration import (
        calibration_batches,
        check_same_tokenizer,
        read_calibration,
    )
    from merge_models.evals.inputs.models import check_device

    check_device(device)
    text = read_calibration(data)
    others = [*family.parents, *([family.base] if family.base else [])]
    tokenizer = check_same_tokenizer(
        [family.merged, *others], text, _WITHOUT_TOKENIZER, allow_pickle=allow_pickle
    )
    return calibration_batches(tokenizer, source=text, tokens=tokens, length=length, seed=seed)


def _task_probe(
    batches: Batches, tasks: TaskSettings | None, measure: Collection[Measure], seed: int
) -> TaskProbe | None:
    if "tasks" not in measure:
        return None
    from merge_models.evals.measures.tasks import TaskProbe, TaskSettings

    # Loss by domain comes with the activations: perplexity through a window would cost as much again.
    with_activations = bool({"activations", "information"} & set(measure))
    quick = TaskSettings(perplexity_tokens=0) if with_activations else TaskSettings()
    return TaskProbe(batches, tasks or quick, seed=seed)


def _run_models(
    evaluation: Evaluation,
    family: Lineage,
    measure: Collection[Measure],
    batches: Batches,
    task: TaskProbe | None,
    seed: int,
    opened: Callable[[str], AbstractContextManager[Loaded]],
    progress: Callable[[str], None],
) -> Evaluation:
    from merge_models.evals.measures.activations import ActivationProbe

    folders = [*family.parents, *([family.base] if family.base else []), family.merged]
    wants_activations = bool({"activations", "information"} & set(measure))
    activation = ActivationProbe(batches, weights=family.weights, seed=seed) if wants_activations else None
    probes: list[Probe] = [probe for probe in (activation, task) if probe is not None]
    merge, *others = evaluation.models
    for ref, folder in zip([*others, merge], folders, strict=True):
        progress(f"{ref.role} {ref.name}")
        with opened(folder) as loaded:
            for probe in probes:
                probe.observe(ref, loaded.model, loaded.tokenizer)
    update: dict[str, object] = {}
    if activation is not None:
        update["activations"] = activation.finish()
        if "information" in measure:
            from merge_models.evals.measures.information import diagnose_information

            progress("information")
            update["information"] = diagnose_information(activation.samples(), family.weights)
    if task is not None:
        update["tasks"] = task.finish(evaluation.parents, evaluation.base)
    return evaluation.model_copy(update=update)


def _versions() -> dict[str, str]:
    found = {}
    for package in ("merge-models", "torch", "transformers", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
