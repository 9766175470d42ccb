"""The diagnosis: every tensor of the merge, its layers, and the whole; tensors are measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from merge_models.evals.diagnostics.registry import at
from merge_models.evals.measures.weights.case import Case, GroupedCase, measured
from merge_models.evals.measures.weights.family import (
    TensorFamily,
    align,
    normalised_weights,
    open_model,
    shares_among,
)
from merge_models.evals.measures.weights.moments import Moments, is_finite, measure
from merge_models.evals.schema import DepthWeights, TensorWeights, WeightDiagnosis
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layers import place_of, stacks
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.checkpoint.threads import default_threads, torch_workers, workers
from merge_models.merge.errors import MergeError


def diagnose_weights(
    merged: Any,
    parents: Sequence[Any],
    base: Any = None,
    weights: Sequence[float] | None = None,
    *,
    origins: Sequence[Mapping[str, str]] | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> WeightDiagnosis:
    """Measures the weights of a merge against its parents', and their deltas against the base.

    Checkpoints on disk are read a block at a time: memory does not grow with the model.

    >>> import torch
    >>> diagnose_weights({"w": torch.eye(4) / 2}, [{"w": torch.eye(4)}]).norm_ratio
    0.5

    Args:
        merged: the merge: folder, ``.safetensors`` file, Hub id, state dict or module.
        parents: its parents, likewise.
        base: the model that the parents were tuned from; without it there are no deltas.
        weights: the parents' shares in every mean over parents, normalised here [default: equal].
        origins: for each parent, and then the base, which of its tensors those of the merge came from, by
            name, where layers were put together anew; a tensor that is left out is not compared with it.
        threads: tensors measured at the same time [default: one a core, at most 4]; numbers do not depend
            on it.
        allow_pickle: read files of ``torch.save`` too; nothing of them is run.

    Raises:
        MergeError: a model cannot be read or is of another architecture, or the weights do not fit.
    """
    if not parents:
        raise MergeError("a merge is measured against its parents; give one or more")
    return _diagnose(merged, parents, base, weights, origins, threads, allow_pickle)


def diagnose_parents(
    parents: Sequence[Any],
    base: Any = None,
    weights: Sequence[float] | None = None,
    *,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> WeightDiagnosis:
    """Measures parents before a merge: their geometry, with every field of the merge empty."""
    if not parents:
        raise MergeError("there are no parents; give one or more")
    return _diagnose(None, parents, base, weights, None, threads, allow_pickle)


def _diagnose(
    merged: Any,
    parents: Sequence[Any],
    base: Any,
    weights: Sequence[float] | None,
    origins: Sequence[Mapping[str, str]] | None,
    threads: int | None,
    allow_pickle: bool,
) -> WeightDiagnosis:
    began = time.perf_counter()
    shares = normalised_weights(weights, len(parents))
    opened = partial(open_model, allow_pickle=allow_pickle)
    sources = [opened(parent, f"parent {i + 1}") for i, parent in enumerate(parents)]
    merge = None if merged is None else opened(merged, "the merge")
    root = None if base is None else opened(base, "the base")
    try:
        families, problems = align(merge, sources, root, origins)
        measured_tensors = _measure_all(families, shares, threads)
    finally:
        _close([*sources, *([merge] if merge else []), *([root] if root else [])])
    for one in measured_tensors:
        problems += one.problems
    tensors = tuple(one.record for one in measured_tensors)
    whole = _whole(measured_tensors, shares, base=root is not None, merged=merge is not None)
    return WeightDiagnosis(
        tensors=tensors,
        depth=_depth(tensors),
        **whole,
        problems=tuple(problems),
        seconds=round(time.perf_counter() - began, 3),
    )


def _close(sources: Sequence[Source]) -> None:
    for source in sources:
        close: Callable[[], None] | None = getattr(source, "close", None)
        if close is not None:
            close()


@dataclass(frozen=True)
class _Measured:
    """One tensor's record, and its sums where they count for the whole model."""

    record: TensorWeights
    moments: Moments | None
    whose: tuple[int, ...]
    about_base: bool
    problems: tuple[str, ...] = ()


def _measure_all(
    families: Sequence[TensorFamily], shares: Sequence[float], threads: int | None
) -> list[_Measured]:
    """The largest tensors first, so that no thread ends long after the others; results in model order."""
    count = min(default_threads(), 4) if threads is None else workers(threads)
    by_size = sorted(families, key=lambda family: (-family.count, family.index))
    prefixes = len(stacks(family.name for family in families))
    with torch_workers(count) as pool:
        jobs = [pool.submit(_measure, family, shares, prefixes > 1) for family in by_size]
        try:
            measured_tensors = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    order = sorted(range(len(measured_tensors)), key=lambda i: by_size[i].index)
    return [measured_tensors[i] for i in order]


def _measure(family: TensorFamily, shares: Sequence[float], several_stacks: bool) -> _Measured:
    place = place_of(family.name)
    kind = place.prefix + place.rest if several_stacks else place.rest
    family, moments, problems = _moments(family)
    fields: dict[str, Any] = {}
    if moments is not None:
        theirs = shares_among(shares, family.whose) if family.parents else ()
        has_base, has_merge = family.base is not None, family.merged is not None
        case = Case(moments, theirs, len(shares), has_base, has_merge, family)
        fields = measured("tensor", case)
        if has_merge:
            fields["finite"] = "finite" in case.has
    record = TensorWeights(name=family.name, layer=place.layer, kind=kind, shape=family.shape, **fields)
    counts = moments is not None and bool(family.parents) and record.finite
    counted = moments if counts else None
    return _Measured(record, counted, family.whose, family.base is not None, problems)


def _moments(family: TensorFamily) -> tuple[TensorFamily, Moments | None, tuple[str, ...]]:
    """The sums; of the merge alone where a model that it is compared with is not finite."""
    moments = measure(family) if family.models else None
    if moments is None or moments.finite(range(len(family.parents))):
        return family, moments, ()
    relatives = [*family.parents, *([family.base] if family.base else [])]
    name = printable(family.name)
    problems = tuple(
        f"'{name}' of {printable(one.source.label)} has NaN or Inf" for one in relatives if not is_finite(one)
    )
    alone = replace(family, parents=(), base=None)
    return alone, measure(alone) if alone.merged else None, problems


def _depth(tensors: Sequence[TensorWeights]) -> tuple[DepthWeights, ...]:
    """Medians over each layer's matrices, by rising layer; what stands outside the stack comes last."""
    layers = sorted({t.layer for t in tensors}, key=lambda layer: (layer is None, layer or 0))
    rows = []
    for layer in layers:
        matrices = [t for t in tensors if t.layer == layer and len(t.shape) >= 2]
        if not matrices:
            continue
        medians = {}
        for name in (field.key for diagnostic in at("layer") for field in diagnostic.at("layer")):
            values = [getattr(t, name) for t in matrices if getattr(t, name) is not None]
            medians[name] = median(values) if values else None
        rows.append(DepthWeights(layer=layer, **medians))
    return tuple(rows)


def _whole(
    measured_tensors: Sequence[_Measured], shares: Sequence[float], *, base: bool, merged: bool
) -> dict[str, Any]:
    """The numbers of the whole model: its tensors that are finite in every model, as one long vector."""
    parts: dict[tuple[int, ...], Moments] = {}
    for one in measured_tensors:
        if one.moments is not None and one.about_base == base:
            parts[one.whose] = parts[one.whose] + one.moments if one.whose in parts else one.moments
    everyone = tuple(range(len(shares)))
    if merged and set(parts) - {everyone}:
        return measured("model", GroupedCase(parts, tuple(shares), base))
    if not parts:
        return {}
    return measured("model", Case(parts[everyone], tuple(shares), len(shares), base, merged))
