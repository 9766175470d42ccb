"""A recipe made ready to run: checkpoints opened, plan and layout made, from headers and configs alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.digest import digest_file
from merge_models.merge.checkpoint.guard import is_file
from merge_models.merge.checkpoint.outputs.layout import DEFAULT_SHARD_SIZE, plan_layout
from merge_models.merge.checkpoint.sentence_modules import PICKLED_WEIGHTS, module_weights
from merge_models.merge.checkpoint.sidecars import MAX_SIDECAR, Sidecars, find_sidecars
from merge_models.merge.checkpoint.sources.lora import Places, open_model
from merge_models.merge.checkpoint.sources.naming import with_names_of_first
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.planning.assembly import assemble
from merge_models.merge.planning.differences import Case, differences
from merge_models.merge.planning.plan import make_plan
from merge_models.merge.publishing.identity import (
    RECIPE_DIGEST_KEY,
    RECIPE_KEY,
    names_of,
    recipe_metadata,
    renamed,
)
from merge_models.merge.publishing.prepared import Prepared, Target
from merge_models.merge.publishing.targets import MODEL
from merge_models.merge.recipes.recipe import Recipe, as_recipe
from merge_models.merge.sizes import parse_size


def prepare(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    places: Places | None = None,
    results: Sequence[str] = (),
    *,
    allow_pickle: bool = False,
    target: Target = MODEL,
) -> Prepared:
    """Opens a recipe's checkpoints and plans the merge, from headers and configs alone.

    Args:
        recipe: a recipe, what its YAML holds as plain values, or the path of one.
        shard_size: bytes per output file at most.
        places: where models are that are not at the path that their name is: results of earlier recipes.
        results: which of these names are those of earlier recipes.
        allow_pickle: read files of ``torch.save`` too; without code, by ``torch.load(weights_only=True)``.
        target: what kind of folder is made.

    Raises:
        MergeError: the recipe, a checkpoint, or their fit is wrong.

    >>> recipe = {"merge_method": "linear", "models": [{"model": "runs/a"}, {"model": "runs/b"}]}
    >>> prepared = prepare(recipe)
    >>> [(task.name, task.shape, task.action) for task in prepared.plan.tasks]
    [('w', (2, 3), 'merge')]
    >>> prepared.close()
    """
    loaded = as_recipe(recipe)
    out_dtype = loaded.output_dtype()
    wanted = [*loaded.model_names(), *loaded.aide_names()]
    opened = {name: open_model(name, places, allow_pickle=allow_pickle) for name in wanted}
    loaded = _one_name_each(loaded, opened)
    models = tuple(opened[name] for name in loaded.model_names())
    aides = tuple(opened[name] for name in loaded.aide_names())
    opened = {model.label: model for model in (*models, *aides)}
    names = names_of(loaded, opened, results)
    everyone, matched = with_names_of_first([*models, *aides])
    models, aides = everyone[: len(models)], everyone[len(models) :]
    assembly = assemble(loaded, models)
    template = _template(loaded, models, assembly.donor)
    settings, alignment, aligned = loaded.tokenizer_settings(), None, models
    if settings is not None:
        from merge_models.merge.tokenizer.alignment import align

        base = loaded.model_names().index(loaded.base_model) if loaded.base_model else None
        alignment = align(settings, models, base, assembly.donor, aides)
        models = alignment.models
    plan = make_plan(models, assembly, out_dtype, loaded.seed)
    adapted = any(len(model.paths) > 1 for model in opened.values())
    plan = replace(plan, notes=differences(Case(loaded, plan, alignment, adapted)))
    if plan.donor != assembly.donor:
        template = _template(loaded, aligned, plan.donor)
    donor = models[plan.donor]
    plan = replace(plan, remarks=(*plan.remarks, *matched, *_module_remarks(models, donor)))
    written = {output.name for output in plan.outputs()}
    made = ("format", RECIPE_KEY, RECIPE_DIGEST_KEY, *written)
    keep = {key: value for key, value in donor.metadata.items() if key not in made}
    told = {**keep, **recipe_metadata(names.public)}
    limit = parse_size(shard_size)
    layout = plan_layout(plan.outputs(), limit, told, target.stem)
    sidecars = _sidecars(donor)
    if alignment is not None:
        sidecars = sidecars.without_tokenizer()
    prepared = Prepared(
        loaded, names, models, plan, layout, sidecars, target, aides, alignment, template, limit, allow_pickle
    )
    prepared.config()  # what it refuses is to be known now, not when all is merged
    return prepared


def _one_name_each(recipe: Recipe, opened: Mapping[str, DiskSource]) -> Recipe:
    """The recipe with one name for each model: the base and ``base/`` are no two models.

    Args:
        opened: its models by name; those that have another name too are closed.
    """
    first: dict[tuple[str, ...], str] = {}
    others: dict[str, str] = {}
    for name, model in opened.items():
        places = tuple(os.path.realpath(path) for path in model.paths)
        if first.setdefault(places, name) != name:
            others[name] = first[places]
            model.close()
    return renamed(recipe, others.get) if others else recipe


def _template(recipe: Recipe, models: Sequence[DiskSource], donor: int) -> str | None:
    if recipe.chat_template is None:
        return None
    from merge_models.merge.tokenizer.chat import choose_template

    return choose_template(recipe.chat_template, models, models[donor])


def _module_remarks(models: Sequence[DiskSource], donor: DiskSource) -> list[str]:
    """Whose weights the modules behind a sentence encoder have, where the models' are not the same."""
    told = []
    for name in module_weights(donor.folder) if donor.path.is_dir() else ():
        pickled = (donor.folder / name).with_name(PICKLED_WEIGHTS)
        own = _content(donor.folder / name)
        others = [m.label for m in models if m is not donor and _content(m.folder / name) != own]
        if own is None and is_file(pickled):
            told.append(
                f"{name.rpartition('/')[0]}/{pickled.name} of {donor.label} is a pickle and is not copied:"
                " sentence-transformers will miss it; save that model again as safetensors"
            )
        elif own is not None and others:
            told.append(
                f"{name} is not merged but {donor.label}'s; another one, or none, is in {', '.join(others)}"
            )
    return told


def _content(file: Path) -> str | None:
    """What a file holds, as a digest; None where it is none."""
    try:
        return digest_file(file) if is_file(file) and file.stat().st_size <= MAX_SIDECAR else None
    except OSError:
        return None


def _sidecars(donor: DiskSource) -> Sidecars:
    sidecars = Sidecars(donor.folder, (), ())
    if donor.path.is_dir():
        sidecars = find_sidecars(donor.path, [file.name for file in donor.files])
    if donor.tokenizer_folder != donor.folder:
        sidecars = sidecars.with_tokenizer_of(donor.tokenizer_folder)
    return sidecars
