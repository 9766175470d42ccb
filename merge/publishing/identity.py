"""Who is who in a merge: names to publish, places on this machine, and all that the output depends on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_models.merge.checkpoint.digest import digest_bytes, digest_file, digest_header
from merge_models.merge.checkpoint.manifest import Part, parts_of, small_files, version, versions
from merge_models.merge.checkpoint.outputs.layout import Layout
from merge_models.merge.checkpoint.sidecars import Sidecars
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.errors import CheckpointError
from merge_models.merge.kernels import native_name
from merge_models.merge.planning.plan import NUMERICS, Plan
from merge_models.merge.planning.task import Task
from merge_models.merge.recipes.recipe import Recipe, parse_recipe

RECIPE_KEY, RECIPE_DIGEST_KEY = "merge_models.recipe", "merge_models.recipe_digest"
_MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source")


@dataclass(frozen=True)
class Names:
    """The models of a recipe, and the recipe with their names put otherwise.

    Attributes:
        parts: every model and adapter named, by its name.
        located: the recipe, with paths that hold from any folder.
        public: the recipe, with names only: it can be published.
    """

    parts: Mapping[str, Part]
    located: Recipe
    public: Recipe


def names_of(recipe: Recipe, models: Mapping[str, DiskSource], results: Sequence[str]) -> Names:
    """Finds out about a recipe's models.

    Args:
        recipe: the recipe.
        models: every model by its name in the recipe, open.
        results: names of what earlier recipes make.
    """
    parts: dict[str, Part] = {}
    pieces: dict[str, list[str]] = {}
    for label, model in models.items():
        found = parts_of(model, results)
        pieces[label] = [part.text for part in found]
        parts |= {part.text: part for part in found}
    shown = _distinct({text: part.public() for text, part in parts.items()})
    located = {label: "+".join(parts[t].location() for t in texts) for label, texts in pieces.items()}
    public = {label: "+".join(shown[t] for t in texts) for label, texts in pieces.items()}
    return Names(parts, renamed(recipe, located.get), renamed(recipe, public.get))


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """The same names, with numbers behind those that two different models have."""
    result: dict[str, str] = {}
    for key, name in names.items():
        count, candidate = 1, name
        while candidate in result.values():
            count += 1
            candidate = f"{name}-{count}"
        result[key] = candidate
    return result


def renamed(recipe: Recipe, name: Callable[[str], str | None]) -> Recipe:
    """Returns the recipe with every model's name replaced by ``name(it)``, where that is something."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: name(item) or item if key in _MODEL_KEYS and isinstance(item, str) else walk(item)
                for key, item in value.items()
            }
        return [walk(item) for item in value] if isinstance(value, list) else value

    document = recipe.document()
    kept = {key: document[key] for key in ("parameters", "chat_template", "name") if key in document}
    return parse_recipe({**walk(document), **kept})


def recipe_metadata(recipe: Recipe) -> dict[str, str]:
    """Returns what every shard's header says of how it was made; of a recipe that may be published."""
    text = recipe.yaml()
    return {RECIPE_KEY: text, RECIPE_DIGEST_KEY: digest_bytes(text.encode())}


def binding(
    located: Recipe,
    plan: Plan,
    layout: Layout,
    roles: list[tuple[str, DiskSource]],
    sidecars: Sidecars,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns all that the bytes of an output depend on; a merge goes on only where it is what it was.

    Weight files count by path, size, time of change and header: reading all of them again would cost as much
    as the merge, and a training run that leaves a file of the same size leaves another time. Small files
    count by their content. Threads, and anything else that changes no byte, do not count.

    Args:
        located: the recipe.
        plan, layout: what it came to.
        roles: (role, checkpoint) of every input.
        sidecars: the small files that are copied.
        options: further settings that change bytes.
    """
    return {
        "recipe": located.document(),
        "options": dict(options),
        "inputs": _inputs(roles, sidecars),
        "plan": digest_bytes(repr([_resolved(task) for task in plan.every_task()]).encode()),
        "output files": digest_bytes(b"".join(shard.header for shard in layout.shards)),
        "software": {
            "merge-models": version(),
            "numerics": NUMERICS,
            "kernels": native_name(),
            "machine": platform.machine(),
            **versions(),
        },
    }


def _resolved(task: Task) -> tuple[Any, ...]:
    inputs = [
        (role, ref.model, ref.info.name, ref.info.dtype.code, ref.info.shape)
        for role, ref in task.inputs.by_role()
    ]
    outputs = [(spec.name, spec.shape, spec.dtype.code) for spec in task.outputs]
    return task.name, outputs, task.action, repr(task.strategy), inputs


def _inputs(roles: list[tuple[str, DiskSource]], sidecars: Sidecars) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for role, model in roles:
            model.check_unchanged()
            for file in model.files:
                status = file.stat()
                head = digest_header(file)[7:39]
                found[f"{role} {file}"] = f"{status.st_size} bytes {status.st_mtime_ns} ns {head}"
            for file in small_files(model):
                found[f"{role} {file}"] = digest_file(file)
        found |= {f"copied {file}": digest_file(file) for _, file in sidecars.files()}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}; allow it") from None
    return found


def parameters(task: Task) -> dict[str, Any]:
    """Returns the resolved parameters of a task's strategy; empty where it is copied."""
    strategy = task.strategy
    if strategy is None:
        return {}
    return {p.name: getattr(strategy, p.field) for p in parameters_of(type(strategy)).values()}
