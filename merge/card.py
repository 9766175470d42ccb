"""What a merge says of itself: the model card and the manifest."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from merge_models.merge.checkpoint.hub import hub_repositories
from merge_models.merge.checkpoint.source import DiskSource
from merge_models.merge.checkpoint.text import code_span, fenced, visible
from merge_models.merge.plan import Plan
from merge_models.merge.recipe import Recipe
from merge_models.merge.strategies import find_strategy
from merge_models.merge.strategies.base import Figures
from merge_models.merge.survival import rounded

MANIFEST_FORMAT = 1


def version(package: str = "merge-models") -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def model_card(recipes: Sequence[Recipe], library: str | None) -> str:
    """README.md of a merge: front matter that hubs read, and the recipe that makes it again.

    Args:
        recipes: what was run; earlier ones make models that the last one names.
        library: ``library_name`` for hubs, where known.
    """
    recipe = recipes[-1]
    names = recipe.model_names()
    every = [name for made in recipes for name in (*made.model_names(), *made.aide_names())]
    hub_ids = [repository for name in every for repository in hub_repositories(name)]
    front: dict[str, Any] = {}
    if hub_ids:
        front["base_model"] = list(dict.fromkeys(hub_ids))
    if library:
        front["library_name"] = library
    front["tags"] = ["merge", "merge-models"]
    strategy = find_strategy(recipe.merge_method)
    parents = "\n".join(f"- `{code_span(name)}`" for name in names if name != recipe.base_model)
    base = f"\nBase model: `{code_span(recipe.base_model)}`\n" if recipe.base_model else ""
    text = "---\n".join(made.yaml() for made in recipes)
    head = visible(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))
    return (
        f"---\n{head}---\n# Merge ({strategy.name})\n\n"
        f"Made with merge-models {version()} by `{strategy.name}`"
        f"{f' ({strategy.source})' if strategy.source else ''} from\n\n{parents}\n{base}\n"
        f"## Recipe\n\n```yaml\n{fenced(text)}```\n"
    )


def manifest(
    recipe: Recipe,
    plan: Plan,
    models: Sequence[tuple[str, DiskSource]],
    figures: Mapping[str, Figures],
    kernels: str,
) -> dict[str, Any]:
    """``merge_manifest.json``: what was made from what, with what.

    Args:
        recipe: what was run.
        plan: what it came to.
        models: (role, checkpoint) of every input, in order.
        figures: what strategies told, by tensor.
        kernels: which block kernels ran.
    """
    packages = ("torch", "numpy", "safetensors", "geoopt")
    return {
        "format": MANIFEST_FORMAT,
        "tool": {"name": "merge-models", "version": version(), "kernels": kernels},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "recipe": recipe.document(),
        "seed": recipe.seed,
        "inputs": [_input(role, model) for role, model in models],
        "output": {
            "tensors": len(plan.tensors),
            "parameters": plan.parameters,
            "bytes": plan.bytes_out,
            "copied": [t.name for t in plan.tensors if t.action == "copy"],
            "dropped": [{"tensor": n, "model": m, "reason": r} for n, m, r in plan.dropped],
        },
        "rounding": {"mode": recipe.rounding, **(asdict(told) if (told := rounded(figures)) else {})},
        "figures": {name: _plain(values) for name, values in sorted(figures.items())},
    }


def _plain(figures: Figures) -> dict[str, Any]:
    """Figures as strict JSON knows them: NaN and Inf in words."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _input(role: str, model: DiskSource) -> dict[str, Any]:
    files = [{"name": file.name, "bytes": _size(file)} for file in model.files]
    return {"role": role, "model": model.label, "tensors": len(model.tensors), "files": files}
