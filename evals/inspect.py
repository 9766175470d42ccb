"""Parents before a merge: do they fit each other, how far apart are they, and what merges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from merge_models.evals.advice import advise
from merge_models.evals.compatibility import Finding, compare_headers
from merge_models.evals.evaluation import unique_names
from merge_models.evals.schema import Inspection, ModelRef, WeightDiagnosis
from merge_models.evals.weights.family import normalised_weights, open_model
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.source import Source
from merge_models.merge.errors import MergeError


def inspect_parents(
    parents: Sequence[Any],
    base: Any = None,
    *,
    headers_only: bool = False,
    weights: Sequence[float] | None = None,
    threads: int | None = None,
) -> Inspection:
    """Looks at models that are to be merged.

    Headers, configs and tokenizers say whether they can be merged as they are: that takes a second, and no
    torch is loaded for folders. The weights themselves, streamed, say how far apart they are; from that
    follows which strategies fit (``advice.py`` has the rules and their sources).

    Args:
        parents: folders, ``.safetensors`` files, Hub ids, state dicts or modules.
        base: the model that they were tuned from.
        headers_only: leave out what needs the weights.
        weights: the parents' shares in every mean [default: equal].
        threads: tensors measured at the same time [default: one a core, at most 4].

    Raises:
        MergeError: there is no parent, a model cannot be opened, or the weights do not fit the parents.
    """
    if not parents:
        raise MergeError("there are no parents; give one or more")
    shares = normalised_weights(weights, len(parents))
    sources = [open_model(parent, f"parent {i + 1}") for i, parent in enumerate(parents)]
    root = None if base is None else open_model(base, "the base")
    refs = _refs(sources, root, shares)
    findings = compare_headers([*sources, *([root] if root else [])], [ref.name for ref in refs])
    _close([*sources, *([root] if root else [])])
    inspection = Inspection(
        models=refs,
        compatible=not any(finding.blocks for finding in findings),
        problems=tuple(finding.text for finding in findings),
    )
    if headers_only or any(finding.blocks_measuring for finding in findings):
        return inspection
    from merge_models.evals.weights import diagnose_parents

    return _with_geometry(inspection, diagnose_parents(parents, base, shares, threads=threads), findings)


def _with_geometry(inspection: Inspection, found: WeightDiagnosis, findings: Sequence[Finding]) -> Inspection:
    bad = [line for line in found.problems if line.endswith("has NaN or Inf")]
    matrices = [t.mean_norm_ratio for t in found.tensors if len(t.shape) >= 2]
    gaps = [1 - kept for kept in matrices if kept is not None]
    return inspection.model_copy(
        update={
            "compatible": inspection.compatible and not bad,
            "problems": (*inspection.problems, *(f"{line}; repair or replace that model" for line in bad)),
            "tensors": found.tensors,
            "depth": found.depth,
            "cosine": found.cosine,
            "delta_norms": found.delta_norms,
            "sign_conflict": found.sign_conflict,
            "curvature": max(0.0, *gaps) if gaps else None,
            "advice": advise(found, any(finding.vocabulary for finding in findings)),
        }
    )


def _refs(sources: Sequence[Source], base: Source | None, shares: Sequence[float]) -> tuple[ModelRef, ...]:
    models = [*sources, *([base] if base else [])]
    labels = [printable(str(model.label).rstrip("/").rpartition("/")[2], 60) for model in models]
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
