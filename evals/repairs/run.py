"""``merge-models repair``: a merge's activation scales set back, and whether that helped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merge_models.evals.inputs.arguments import checked_batches, checked_models, checked_shares
from merge_models.evals.inputs.calibration import Batches, calibration_batches, check_same_tokenizer
from merge_models.evals.inputs.lineage import lineage, short_name
from merge_models.evals.inputs.models import Loaded, kind_of, open_model
from merge_models.evals.inputs.positions import fitting_length
from merge_models.evals.inputs.settings import USUAL_RUNNING, USUAL_TEXT, Running, TextSample
from merge_models.evals.measures.activations.head import body_of
from merge_models.evals.repairs.folder import stored_names, write_repaired
from merge_models.evals.repairs.record import Origins
from merge_models.evals.repairs.rescale import (
    STRENGTHS,
    Mended,
    Moments,
    fold,
    goals_of,
    linear_modules,
    measure,
    mend,
    unfold,
)
from merge_models.evals.schema import LayerRepair, RepairReport
from merge_models.merge.checkpoint.outputs.staging import check_target
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.checkpoint.sources.lora import open_model as open_source
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.errors import MergeError

Name = str | os.PathLike[str]
_ROWS = 8


def repair(
    target: Name,
    parents: Sequence[Name] = (),
    *,
    out: Name,
    weights: Sequence[float] | None = None,
    overwrite: bool = False,
    text: TextSample = USUAL_TEXT,
    running: Running = USUAL_RUNNING,
) -> RepairReport:
    """Writes a copy of a merge whose activations have the scale of its parents' (REPAIR).

    >>> repair("runs/merged", out="runs/repaired").loss_after  # doctest: +SKIP
    2.31

    Three quarters of the text are what scales are taken from, and what chooses how far to go: all the way,
    half, or not at all. The losses of the report are on the other quarter.

    Args:
        target: the merge; it stays as it is.
        parents: its parents; by default those that its manifest names.
        out: output folder; with ``overwrite`` a checkpoint that stands there is replaced.
        weights: the parents' shares [default: the recipe's, else equal].
        text: what models are run on.
        running: how: seed, device, pickles, progress.

    Returns:
        What changed; ``repair.json`` in the folder holds the same, and the manifest what it was made from.

    Raises:
        MergeError: a model does not load, the output cannot be written, or there is nothing to rescale.
    """
    out = local_path(out)
    allow_pickle, progress = running.allow_pickle, running.progress
    family = lineage(target, parents, None, weights, allow_pickle=allow_pickle)
    folders = [family.merged, *family.parents]
    origins = Origins(
        family.merged, family.parents, family.weights, family.base, family.origins, allow_pickle
    )
    opened = partial(open_model, device=running.device, allow_pickle=allow_pickle)
    with closing(open_source(family.merged, allow_pickle=allow_pickle)) as checkpoint:
        places = [path for folder in folders for path in _paths(folder, allow_pickle)]
        check_target(out, places, overwrite)
        tokenizer = check_same_tokenizer(folders, allow_pickle=allow_pickle)
        length, notes = fitting_length(folders, text.length, allow_pickle=allow_pickle)
        for note in notes:
            progress(note)
        options: dict[str, Any] = {"source": text.source, "length": length, "seed": running.seed}
        fit = calibration_batches(tokenizer, tokens=text.tokens, part="fit", **options)
        quarter = max(text.tokens // 4, length)
        held_out = calibration_batches(tokenizer, tokens=quarter, part="held-out", **options)
        goals = _goals(family.parents, family.weights, fit, opened, progress)
        progress(f"merge {short_name(family.merged)}")
        with opened(family.merged) as (model, _, _):
            return _repair(checkpoint, model, goals, fit, held_out, out, origins, overwrite)


def repair_module(
    model: nn.Module,
    parents: Sequence[nn.Module],
    batches: Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> tuple[LayerRepair, ...]:
    """Repairs a module in memory (REPAIR): its weights and biases are changed in place.

    >>> parent, merge = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    >>> [layer.module for layer in repair_module(merge, [parent], [torch.randn(64, 4)])]
    ['0']

    Args:
        model, parents: modules of one architecture; they are run in eval mode and stay in the mode that they
            were in.
        batches: tensors, or tuples or dicts of them, that are joined to one batch along the first dimension.
        weights: the parents' shares; equal by default.
        forward: runs a module on the joined batch; by default ``module(*batch)``, ``module(**batch)`` or
            ``module(batch)``.

    Raises:
        MergeError: there is no parent, or no linear module that runs in all of them.
    """
    from merge_models.evals.measures.activations.modules import call, in_eval_mode

    parents, batches = checked_models(parents), checked_batches(batches)
    if not parents or not batches:
        raise MergeError("a repair takes at least one parent and one batch; give both")
    batch, run_on = _joined(batches), forward or call

    def run(module: nn.Module) -> Any:
        return run_on(module, batch)

    given = checked_shares(weights, len(parents))
    moments = []
    for parent in parents:
        with in_eval_mode(parent):
            moments.append(measure(parent, linear_modules(parent), run, False))
    goals = _checked(goals_of(moments, [w / sum(given) for w in given]), linear_modules(model))
    with in_eval_mode(model):
        mended = mend(model, goals, run, False)
    fold(model, mended)
    return _records(mended)


def _paths(model: str, allow_pickle: bool) -> Sequence[Path]:
    with closing(open_source(model, allow_pickle=allow_pickle)) as source:
        return source.paths


def _goals(
    parents: Sequence[str],
    weights: Sequence[float],
    text: Batches,
    opened: Callable[[str], AbstractContextManager[Loaded]],
    progress: Callable[[str], None],
) -> dict[str, Moments]:
    moments = []
    for parent in parents:
        progress(f"parent {short_name(parent)}")
        with opened(parent) as (model, _, _):
            moments.append(measure(model, linear_modules(model), _runner(text), True))
    return goals_of(moments, weights)


def _repair(
    checkpoint: DiskSource,
    model: Any,
    goals: dict[str, Moments],
    text: Batches,
    held_out: Batches,
    out: Path,
    origins: Origins,
    overwrite: bool,
) -> RepairReport:
    names = stored_names(checkpoint, dict(model.named_parameters()))
    own = {
        name: module
        for name, module in linear_modules(model).items()
        if all(f"{name}.{part}" in names for part, p in module._parameters.items() if p is not None)
    }
    before = _loss(model, held_out)
    mended = _choose(model, _checked(goals, own), text)
    undo = fold(model, mended)
    report = RepairReport(
        layers=_records(mended),
        loss_before=before,
        loss_after=_loss(model, held_out),
        calibration=text.record,
    )
    unfold(undo)
    write_repaired(checkpoint, model, mended, names, out, report, origins, overwrite)
    return report


def _choose(model: Any, goals: dict[str, Moments], text: Batches) -> list[Mended]:
    """The maps of the strength whose loss on the text is least; for models without a loss, the full ones."""
    best, least = mend(model, goals, _runner(text), True, 1.0), None
    for strength in STRENGTHS:
        mended = mend(model, goals, _runner(text), True, strength)
        undo = fold(model, mended)
        loss = _loss(model, text)
        unfold(undo)
        if loss is None:
            return best
        if least is None or loss < least:
            best, least = mended, loss
    return best


def _runner(text: Batches) -> Callable[[nn.Module], Any]:
    """Runs a model, without its head, on all of the text in one batch."""
    ids = np.concatenate(list(text.ids.values()))

    def run(model: Any) -> Any:
        body = (body_of(model) if kind_of(model) == "causal" else None) or model
        body(input_ids=torch.from_numpy(ids).to(next(model.parameters()).device))

    return run


@torch.inference_mode()
def _loss(model: Any, text: Batches) -> float | None:
    """Mean next-token cross-entropy, nats, of all but the first prediction; None for encoders."""
    if kind_of(model) != "causal":
        return None
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for _, batch in text.batches(_ROWS):
        ids = torch.from_numpy(batch).to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, 1:-1].float()
        labels = ids[:, 2:]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        total, count = total + float(losses), count + labels.numel()
    value = total / max(count, 1)
    return value if np.isfinite(value) else None


def _checked(goals: dict[str, Moments], own: dict[str, nn.Module]) -> dict[str, Moments]:
    shared = {name: goal for name, goal in goals.items() if name in own}
    if not shared:
        raise MergeError(
            "merge and parents have no linear module in common to rescale; give the merge's parents"
        )
    return shared


def _records(mended: Sequence[Mended]) -> tuple[LayerRepair, ...]:
    return tuple(
        LayerRepair(
            module=step.name,
            layer=step.layer,
            variance_ratio_before=step.before,
            variance_ratio_after=step.after,
            folded_into=(f"{step.name}.weight", *([f"{step.name}.bias"] if step.shift is not None else [])),
        )
        for step in mended
    )


def _joined(batches: Sequence[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches))
    if isinstance(first, dict):
        return {key: _joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_joined(list(parts)) for parts in zip(*batches, strict=True))
    return first
