"""Parents before a merge: do they fit each other, how far apart are they, and what merges them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from merge_models.evals.inputs.arguments import checked_models, checked_weights
from merge_models.evals.inputs.compatibility import Finding, compare_headers
from merge_models.evals.inputs.lineage import short_name, unique_names
from merge_models.evals.judgement.advice import advise
from merge_models.evals.measures.weights.family import normalised_weights, open_model
from merge_models.evals.schema import Inspection, ModelRef, WeightDiagnosis
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.errors import MergeError

ALIKE = 1e-12
"""How far the cosine of two models that count as the same may be from 1."""


def inspect_parents(
    parents: Sequence[Any],
    base: Any = None,
    *,
    headers_only: bool = False,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> Inspection:
    """Looks at models that are to be merged.

    >>> import torch
    >>> inspect_parents([{"w": torch.eye(4)}, {"w": 2 * torch.eye(4)}]).compatible
    True

    Headers, configs and tokenizers say whether they can be merged as they are: that takes a second, and no
    torch is loaded for folders. The weights themselves, streamed, say how far apart they are; from that
    follows which strategies fit (``advice.py`` has the rules and their sources).

    Args:
        parents: folders, ``.safetensors`` files, Hub ids (each also with ``+ADAPTER``), state dicts or
            modules.
        base: the model that they were tuned from.
        headers_only: leave out what needs the weights.
        weights: the parents' shares in every mean [default: equal].
        threads: tensors measured at the same time [default: one a core, at most 4].
        allow_pickle: read files of ``torch.save`` too; nothing of them is run.

    Raises:
        MergeError: there is no parent, a model cannot be opened, or the weights do not fit the parents.
    """
    parents, weights = checked_models(parents), checked_weights(weights)
    if not parents:
        raise MergeError("there are no parents; give one or more")
    shares = normalised_weights(weights, len(parents))
    opened = partial(open_model, allow_pickle=allow_pickle)
    sources = [opened(parent, f"parent {i + 1}") for i, parent in enumerate(parents)]
    root = None if base is None else opened(base, "the base")
    refs = _refs(sources, root, shares)
    findings = compare_headers([*sources, *([root] if root else [])], [ref.name for ref in refs])
    remarks = tuple(_same_files(refs, [*sources, *([root] if root else [])]))
    _close([*sources, *([root] if root else [])])
    inspection = Inspection(
        models=refs,
        compatible=not any(finding.blocks for finding in findings),
        problems=(*(finding.text for finding in findings), *remarks),
    )
    if headers_only or any(finding.blocks_measuring for finding in findings):
        return inspection
    from merge_models.evals.measures.weights.diagnose import diagnose_parents

    geometry = diagnose_parents(parents, base, shares, threads=threads, allow_pickle=allow_pickle)
    copies = () if remarks else tuple(_same_weights(refs, geometry))
    return _with_geometry(inspection, geometry, findings, copies)


def _with_geometry(
    inspection: Inspection, geometry: WeightDiagnosis, findings: Sequence[Finding], copies: Sequence[str]
) -> Inspection:
    bad = [line for line in geometry.problems if line.endswith("has NaN or Inf")]
    fixes = [f"{line}; repair or replace that model" for line in bad]
    matrices = [t.mean_norm_ratio for t in geometry.tensors if len(t.shape) >= 2]
    gaps = [1 - kept for kept in matrices if kept is not None]
    return inspection.model_copy(
        update={
            "compatible": inspection.compatible and not bad,
            "problems": (*inspection.problems, *fixes, *copies),
            "tensors": geometry.tensors,
            "depth": geometry.depth,
            "cosine": geometry.cosine,
            "delta_norms": geometry.delta_norms,
            "sign_conflict": geometry.sign_conflict,
            "curvature": max(0.0, *gaps) if gaps else None,
            "advice": advise(geometry, any(finding.vocabulary for finding in findings)),
        }
    )


def _same_files(refs: Sequence[ModelRef], models: Sequence[Source]) -> Iterator[str]:
    """What is said of models that are none to compare: one alone, or one named twice."""
    if len(models) == 1:
        yield "there is one model only: name those that it is to be merged with, or its base (--base)"
    seen: dict[tuple[Path, ...], str] = {}
    for ref, model in zip(refs, models, strict=True):
        files = tuple(file.resolve() for file in getattr(model, "files", ()))
        if files in seen:
            yield f"{seen[files]} and {ref.name} are the same files: nothing comes of merging them"
        if files:
            seen[files] = ref.name


def _same_weights(refs: Sequence[ModelRef], geometry: WeightDiagnosis) -> Iterator[str]:
    """What is said of models whose weights are those of another, or multiples of them."""
    names = [ref.name for ref in refs if ref.role == "parent"]
    for name, norm in zip(names, geometry.delta_norms or (), strict=False):
        if norm == 0:
            yield f"{name} has the weights of its base: it adds nothing to a merge"
    for i, row in enumerate(geometry.cosine or ()):
        for j, cosine in enumerate(row[:i]):
            if cosine is not None and cosine > 1 - ALIKE:
                what = "changes from the base" if geometry.delta_norms else "weights"
                yield f"{names[j]} and {names[i]} have the same {what}, or multiples of them: is one a copy?"


def _refs(sources: Sequence[Source], base: Source | None, shares: Sequence[float]) -> tuple[ModelRef, ...]:
    models = [*sources, *([base] if base else [])]
    labels = [printable(short_name(str(model.label)), 60) for model in models]
    return tuple(
        ModelRef(
            name=name,
            role="parent" if number < len(sources) else "base",
            weight=shares[number] if number < len(sources) else None,
            parameters=sum(info.count for info in model.tensors.values()),
        )
        for number, (name, model) in enumerate(zip(unique_names(labels), models, strict=True))
    )


def _close(sources: Sequence[Source]) -> None:
    for source in sources:
        close = getattr(source, "close", None)
        if close is not None:
            close()
