"""The diagnosis: every tensor of the merge, its layers, and the whole; tensors are measured side by side."""

from __future__ import annotations

import math
import operator
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from merge_models.evals.measures.weights.family import (
    TensorFamily,
    align,
    normalised_weights,
    open_model,
    shares_among,
)
from merge_models.evals.measures.weights.geometry import geometry, ratio
from merge_models.evals.measures.weights.hyperspherical import hyperspherical_energy, sample_rows
from merge_models.evals.measures.weights.moments import Moments, is_finite, measure
from merge_models.evals.measures.weights.spectrum import Spectrum, spectrum, subspace_overlap
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
    """The same before a merge: the parents' geometry, with every field of the merge empty."""
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
        found = _measure_all(families, shares, threads)
    finally:
        _close([*sources, *([merge] if merge else []), *([root] if root else [])])
    for one in found:
        problems += one.problems
    tensors = tuple(one.record for one in found)
    whole = _whole(found, shares, base=root is not None, merged=merge is not None)
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
            found = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    order = sorted(range(len(found)), key=lambda i: by_size[i].index)
    return [found[i] for i in order]


_OF_ALL = ("cosine", "sign_conflict", "subspace_overlap", "parent_share", "effective_parents")
"""What is told of all parents together: nothing of layers that came from some of them only."""


def _measure(family: TensorFamily, shares: Sequence[float], several_stacks: bool) -> _Measured:
    place = place_of(family.name)
    kind = place.prefix + place.rest if several_stacks else place.rest
    family, moments, problems = _moments(family)
    fields: dict[str, Any] = {}
    if moments is not None:
        every, shares = len(shares), shares_among(shares, family.whose) if family.parents else ()
        fields = geometry(moments, shares, base=family.base is not None, merged=family.merged is not None)
        if 0 < len(shares) < every:
            fields |= dict.fromkeys(_OF_ALL)
        if len(family.shape) >= 2 and family.count:
            fields |= _matrix_fields(family, moments, shares)
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


def _matrix_fields(family: TensorFamily, moments: Moments, shares: Sequence[float]) -> dict[str, Any]:
    """What needs the tensor as a matrix: spectra, and directions of its rows."""
    seed = zlib.crc32(family.name.encode())
    fields: dict[str, Any] = {}
    own, deltas = moments.norms(), moments.delta_norms()
    if family.merged is not None and own[-1] is not None:
        found = [spectrum(one, None, norm, seed) for one, norm in zip(family.models, own, strict=True)]
        fields |= _spectral(found[-1], own[-1], found[:-1], own[:-1], shares)
        rows = sample_rows(family.shape[0], seed)
        energies = [hyperspherical_energy(one, rows) for one in family.models]
        fields["hyperspherical_energy"] = energies[-1]
        fields["hyperspherical_energy_ratio"] = ratio(energies[-1], energies[:-1], shares)
    if family.base is not None:
        count = len(family.parents)
        found = [
            spectrum(one, family.base, norm, seed, leading=i < count > 1)
            for i, (one, norm) in enumerate(zip(family.models, deltas, strict=True))
        ]
        ranks = [None if one is None else one.effective_rank for one in found]
        if family.merged is not None:
            fields["delta_effective_rank"] = ranks[-1]
            fields["delta_effective_rank_ratio"] = ratio(ranks[-1], ranks[:-1], shares)
        spaces = [one.leading for one in found[:count] if one is not None and one.leading is not None]
        fields["subspace_overlap"] = subspace_overlap(spaces) if len(spaces) == count else None
    return fields


def _spectral(
    merge: Spectrum | None,
    norm: float | None,
    parents: Sequence[Spectrum | None],
    norms: Sequence[float | None],
    shares: Sequence[float],
) -> dict[str, Any]:
    if merge is None or norm is None:
        return {}
    tops = [None if one is None else one.spectral_norm for one in parents]
    ranks = [None if one is None else one.effective_rank for one in parents]
    stable = [None if t is None or n is None else (n / t) ** 2 for n, t in zip(norms, tops, strict=True)]
    own = (norm / merge.spectral_norm) ** 2
    return {
        "spectral_norm": merge.spectral_norm,
        "spectral_norm_error": merge.spectral_norm_error,
        "spectral_norm_ratio": ratio(merge.spectral_norm, tops, shares),
        "stable_rank": own,
        "stable_rank_ratio": ratio(own, stable, shares),
        "effective_rank": merge.effective_rank,
        "effective_rank_ratio": ratio(merge.effective_rank, ranks, shares),
        "rank_method": merge.method,
        "rank_error": merge.error,
    }


_DEPTH_FIELDS = tuple(name for name in DepthWeights.model_fields if name != "layer")


def _depth(tensors: Sequence[TensorWeights]) -> tuple[DepthWeights, ...]:
    """Medians over each layer's matrices, by rising layer; what stands outside the stack comes last."""
    layers = sorted({t.layer for t in tensors}, key=lambda layer: (layer is None, layer or 0))
    rows = []
    for layer in layers:
        matrices = [t for t in tensors if t.layer == layer and len(t.shape) >= 2]
        if not matrices:
            continue
        medians = {}
        for name in _DEPTH_FIELDS:
            values = [getattr(t, name) for t in matrices if getattr(t, name) is not None]
            medians[name] = median(values) if values else None
        rows.append(DepthWeights(layer=layer, **medians))
    return tuple(rows)


def _whole(
    found: Sequence[_Measured], shares: Sequence[float], *, base: bool, merged: bool
) -> dict[str, Any]:
    """The same of all tensors together, as one long vector: those that are finite in every model."""
    parts: dict[tuple[int, ...], Moments] = {}
    for one in found:
        if one.moments is not None and one.about_base == base:
            parts[one.whose] = parts[one.whose] + one.moments if one.whose in parts else one.moments
    everyone = tuple(range(len(shares)))
    if merged and set(parts) - {everyone}:
        return _of_groups(parts, shares, base=base)
    if not parts:
        return {}
    total = parts[everyone]
    fields = geometry(total, shares, base=base, merged=merged)
    wanted = ("cosine", "norm_ratio", "delta_norm_ratio", "sign_conflict")
    wanted += ("parent_share", "effective_parents", "unexplained")
    wanted += ("mean_norm_ratio", "mean_delta_norm_ratio")
    kept = {name: fields[name] for name in wanted if name in fields}
    if base:
        root = float(total.gram.reference.sqrt())
        norms = total.delta_norms()[: len(shares)]
        kept["delta_norms"] = tuple(None if n is None or not root else n / root for n in norms)
    return kept


def _of_groups(
    parts: Mapping[tuple[int, ...], Moments], shares: Sequence[float], *, base: bool
) -> dict[str, Any]:
    """The norms of a merge whose layers came from different parents: over the mean norms of those that each
    came from, taken together."""
    fields = {"norm_ratio": _over_means(parts, shares, Moments.norms)}
    if base:
        fields["delta_norm_ratio"] = _over_means(parts, shares, Moments.delta_norms)
    return fields


def _over_means(
    parts: Mapping[tuple[int, ...], Moments],
    shares: Sequence[float],
    norms_of: Callable[[Moments], list[float | None]],
) -> float | None:
    owns, means = [], []
    for whose, moments in parts.items():
        *theirs, own = norms_of(moments)
        known = [norm for norm in theirs if norm is not None]
        if own is None or len(known) < len(theirs):
            return None
        owns.append(own)
        means.append(math.fsum(map(operator.mul, shares_among(shares, whose), known)))
    return ratio(math.hypot(*owns), [math.hypot(*means)], [1.0])
