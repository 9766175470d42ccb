"""Parents before a merge, as Markdown that a terminal shows well too."""

from __future__ import annotations

from merge_models.evals.report.escape import markdown_code, markdown_prose
from merge_models.evals.report.markdown import MOST_LAYERS, table
from merge_models.evals.report.numbers import number, percent
from merge_models.evals.schema import DepthWeights, Inspection, ModelRef


def inspection_markdown(inspection: Inspection) -> str:
    """Compatible or not, the parents, how far apart they are, what fits them."""
    parts = ["## Parents", _compatible(inspection), _models(inspection)]
    if inspection.cosine is not None:
        parts += ["### How far apart", *_geometry(inspection)]
    if inspection.depth:
        parts += _depth(inspection.depth)
    if inspection.advice:
        parts += [
            "### What fits",
            "\n".join(f"1. {markdown_code(n)}: {markdown_prose(why)}" for n, why in inspection.advice),
        ]
    return "\n\n".join(parts) + "\n"


def _parents(inspection: Inspection) -> list[ModelRef]:
    return [model for model in inspection.models if model.role != "base"]


def _compatible(inspection: Inspection) -> str:
    if inspection.compatible and not inspection.problems:
        return "**✓ Compatible.** They can be merged as they are."
    word = "**✓ Compatible**, with remarks:" if inspection.compatible else "**✕ Not compatible:**"
    return word + "\n\n" + "\n".join(f"- {markdown_prose(problem)}" for problem in inspection.problems)


def _models(inspection: Inspection) -> str:
    deltas = iter(inspection.delta_norms or ())
    rows = []
    for model in inspection.models:
        delta = number(next(deltas, None)) if model.role != "base" else number(None)
        rows.append([markdown_code(model.name), model.role, number(model.parameters), delta])
    return table(["Model", "Role", "Parameters", "Delta norm over base"], rows, words=(0, 1))


def _geometry(inspection: Inspection) -> list[str]:
    told = [
        f"Curvature {number(inspection.curvature)}: the gap between the plain mean's norm and the parents' "
        "mean norm (0 is flat).",
    ]
    if inspection.sign_conflict is not None:
        told.append(f"Sign conflict: {percent(inspection.sign_conflict)} of what several parents changed.")
    parents = _parents(inspection)
    rows = [
        [markdown_code(parent.name), *(number(value) for value in row)]
        for parent, row in zip(parents, inspection.cosine or (), strict=False)
    ]
    head = ["Cosine to", *(markdown_code(parent.name) for parent in parents)]
    return ["\n".join(told), table(head, rows)]


def _depth(depth: tuple[DepthWeights, ...]) -> list[str]:
    fields = {"sign_conflict": "Sign conflict", "subspace_overlap": "Subspace overlap"}
    layers = [d for d in depth if d.layer is not None]
    known = [field for field in fields if any(getattr(d, field) is not None for d in layers)]
    if not known:
        return []
    step = max(1, -(-len(layers) // MOST_LAYERS))
    rows = [[str(d.layer), *(number(getattr(d, field)) for field in known)] for d in layers[::step]]
    return ["### By depth", table(["Layer", *(fields[field] for field in known)], rows)]
