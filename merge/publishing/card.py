"""What a merge says of itself: the model card and the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from merge_models.merge.checkpoint.digest import digest_bytes
from merge_models.merge.checkpoint.manifest import (
    MANIFEST_FORMAT,
    described,
    described_input,
    version,
    versions,
)
from merge_models.merge.checkpoint.outputs.layout import Layout
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.text import code_span, fenced, visible
from merge_models.merge.contract.kernel import Figures
from merge_models.merge.kernels import native_name
from merge_models.merge.planning.parentage import Relative, origins
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import Task
from merge_models.merge.publishing.identity import Names, parameters
from merge_models.merge.recipes.recipe import Recipe
from merge_models.merge.running.survival import rounded
from merge_models.merge.strategies.registry import find_strategy, strategy_name

REVIEW_MARK = "<!-- evaluation: not made again by reproduce -->"
"""What follows it in a model card was measured, with its time, and differs from run to run."""


def model_card(
    recipes: Sequence[Recipe], relatives: Sequence[Relative], repositories: Sequence[str], library: str | None
) -> str:
    """Returns README.md of a merge: front matter that hubs read, and the recipe that makes it again.

    Args:
        recipes: what was run, with names that may be published; earlier ones make models that the last names.
        relatives: what each model of the last recipe is to it.
        repositories: Hub repositories of the inputs.
        library: ``library_name`` for hubs, where known.
    """
    recipe = recipes[-1]
    names = recipe.model_names()
    front: dict[str, Any] = {}
    if repositories:
        front["base_model"] = list(dict.fromkeys(repositories))
    if library:
        front["library_name"] = library
    front["tags"] = ["merge", "merge-models"]
    strategy = find_strategy(recipe.merge_method)
    mixed = [name for name, own in zip(names, relatives, strict=True) if own.role == "parent"]
    parents = "\n".join(f"- `{code_span(name)}`" for name in mixed)
    base = ""
    if recipe.base_model:
        among = ", one of these" if recipe.base_model in mixed else ""
        base = f"\nBase model: `{code_span(recipe.base_model)}`{among}\n"
    text = "---\n".join(made.yaml() for made in recipes)
    head = visible(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))
    return (
        f"---\n{head}---\n# Merge ({strategy.name})\n\n"
        f"Made with merge-models {version()} by `{strategy.name}`"
        f"{f' ({strategy.source})' if strategy.source else ''} from\n\n{parents}\n{base}\n"
        f"## Recipe\n\n```yaml\n{fenced(text)}```\n"
    )


def manifest(
    names: Names,
    plan: Plan,
    layout: Layout,
    roles: Sequence[tuple[str, DiskSource]],
    shares: Mapping[str, float],
    figures: Mapping[str, Figures],
    read: Mapping[tuple[str, str], str],
) -> dict[str, Any]:
    """Returns ``merge_manifest.json``: what was made from what, with what.

    It is the one file of the output that holds paths of this machine: :func:`reproduce` needs them.

    Args:
        names: what was run, on what.
        plan, layout: what it came to.
        roles: (role, checkpoint) of every input, in order.
        shares: of the parents, by label.
        figures: what is told of tensors, by name.
        read: digests of the input tensors that were read, by file and name.
    """
    return {
        "format": MANIFEST_FORMAT,
        "tool": {"name": "merge-models", "version": version(), "kernels": native_name()},
        "versions": versions(),
        "recipe": names.located.document(),
        "recipe_digest": digest_bytes(names.public.yaml().encode()),
        "seed": names.located.seed,
        "models": described(names.parts),
        "inputs": [described_input(role, model, read, shares.get(model.label)) for role, model in roles],
        "output": {
            "tensors": len(plan.outputs()),
            "parameters": plan.parameters,
            "bytes": plan.bytes_out,
            "files": [shard.name for shard in layout.shards],
            "groups": _groups(plan.tasks),
            "copied": [task.name for task in plan.tasks if task.is_copied],
            **({"origins": list(origins(plan))} if plan.is_renamed else {}),
            "dropped": [{"tensor": n, "model": m, "reason": r} for n, m, r in plan.dropped],
        },
        "rounding": {"mode": names.located.rounding, **(asdict(told) if (told := rounded(figures)) else {})},
        "figures": {name: plain(values) for name, values in sorted(figures.items())},
    }


def _groups(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Tensors that are made in the same way of the same inputs: how, of which, and their names."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for task in tasks:
        parents, base = [ref.model for ref in task.parents], task.base.model if task.base else None
        others = {role: [ref.model for ref in refs] for role, refs in task.inputs.others.items()}
        key = (task.action, repr(task.strategy), tuple(parents), base, repr(others))
        group = {
            "action": task.action,
            "strategy": strategy_name(type(task.strategy)) if task.strategy else None,
            "parameters": parameters(task),
            "parents": parents,
            "base": base,
            **others,
            "tensors": [],
        }
        found.setdefault(key, group)["tensors"] += [spec.name for spec in task.outputs]
    return list(found.values())


def plain(figures: Figures) -> dict[str, Any]:
    """Returns figures as strict JSON knows them: NaN and Inf in words."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}
