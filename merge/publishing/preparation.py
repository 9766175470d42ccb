"""A recipe made ready to run: checkpoints opened, plan and layout made, from headers and configs alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge_models.merge.checkpoint.digest import digest_file
from merge_models.merge.checkpoint.guard import is_file
from merge_models.merge.checkpoint.layers import stacks
from merge_models.merge.checkpoint.layout import DEFAULT_SHARD_SIZE, Layout, plan_layout
from merge_models.merge.checkpoint.lora import Places, open_model
from merge_models.merge.checkpoint.naming import with_names_of_first
from merge_models.merge.checkpoint.sentence_modules import PICKLED_WEIGHTS, module_weights
from merge_models.merge.checkpoint.sidecars import MAX_SIDECAR, Sidecars, find_sidecars, output_config
from merge_models.merge.checkpoint.source import DiskSource
from merge_models.merge.checkpoint.stacked import stacked_config
from merge_models.merge.checkpoint.tied import untied
from merge_models.merge.planning.assembly import assemble
from merge_models.merge.planning.differences import Case, differences
from merge_models.merge.planning.parentage import Relative, relatives
from merge_models.merge.planning.plan import Plan, make_plan
from merge_models.merge.publishing.identity import (
    RECIPE_DIGEST_KEY,
    RECIPE_KEY,
    Names,
    binding,
    names_of,
    recipe_metadata,
    renamed,
)
from merge_models.merge.recipes.recipe import Recipe, as_recipe
from merge_models.merge.running.memory import Need, needed
from merge_models.merge.sizes import parse_size

if TYPE_CHECKING:
    from merge_models.merge.tokenizer.alignment import Alignment


@dataclass(frozen=True)
class Prepared:
    """A recipe with its checkpoints open and its plan made: all that is known before any arithmetic.

    Attributes:
        recipe: the recipe.
        names: the models that it names, as they may be published and as they are found again.
        models: every model that it names, the base first.
        plan: what will be done.
        layout: the output files.
        sidecars: the small files that the donor gives.
        aides: models that give tokens only.
        alignment: the output's tokenizer and the models brought to it, where the recipe asks for one.
        chat_template: Jinja text, where the recipe asks for one.
        shard_size: bytes per output file at most.
        allow_pickle: whether files of ``torch.save`` were allowed.
    """

    recipe: Recipe
    names: Names
    models: tuple[DiskSource, ...]
    plan: Plan
    layout: Layout
    sidecars: Sidecars
    aides: tuple[DiskSource, ...] = ()
    alignment: Alignment | None = None
    chat_template: str | None = None
    shard_size: int = DEFAULT_SHARD_SIZE
    allow_pickle: bool = False

    @property
    def donor(self) -> DiskSource:
        """The model that gives config and tokenizer: the base, else the first model."""
        return self.models[self.plan.donor]

    def roles(self) -> list[tuple[str, DiskSource]]:
        """(role, checkpoint) of every model."""
        merged = [(own.role, model) for own, model in zip(self.relatives, self.models, strict=True)]
        return [*merged, *(("tokens", model) for model in self.aides)]

    @cached_property
    def relatives(self) -> tuple[Relative, ...]:
        """What each of ``models`` is to the merge."""
        base = self.recipe.base_model
        return relatives(self.plan, None if base is None else self.recipe.model_names().index(base))

    def shares(self) -> dict[str, float]:
        """How much of each parent is meant to be in the merge, by label; empty where that is not known."""
        found = zip(self.models, self.relatives, strict=True)
        return {model.label: own.share for model, own in found if own.share is not None}

    def binding(self) -> dict[str, Any]:
        """All that the output's bytes depend on."""
        return binding(self.names.located, self.plan, self.layout, self.roles(), self.sidecars, {})

    def paths(self) -> list[Path]:
        """Every place that is read."""
        return [path for _, model in self.roles() for path in model.paths]

    def memory(self, threads: int) -> Need:
        """What a run with so many threads needs at most, beyond Python and its libraries."""
        return needed(self.plan, threads)

    def config(self) -> dict[str, Any]:
        """config.json of the output; empty where the donor has none.

        Raises:
            PlanError: the donor's does not say where it counts layers that the recipe slices.
        """
        dtype = self.plan.main_dtype()
        config = dict(self.donor.config)
        if not config or dtype is None:
            return config
        if self.plan.stacks:
            configs = [model.config for model in self.models]
            config = stacked_config(configs, self.plan.donor, stacks(self.donor.tensors), self.plan.stacks)
        if self.alignment is not None:
            config = self.alignment.remapped(config)
        return output_config(untied(config) if self.plan.untied else config, dtype)

    def close(self) -> None:
        """Closes every input file."""
        for _, model in self.roles():
            model.close()


def prepare(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    places: Places | None = None,
    results: Sequence[str] = (),
    *,
    allow_pickle: bool = False,
) -> Prepared:
    """Opens a recipe's checkpoints and plans the merge, from headers and configs alone.

    Args:
        recipe: a recipe, what its YAML holds as plain values, or the path of one.
        shard_size: bytes per output file at most.
        places: where models are that are not at the path that their name is: results of earlier recipes.
        results: which of these names are those of earlier recipes.
        allow_pickle: read files of ``torch.save`` too; without code, by ``torch.load(weights_only=True)``.

    Raises:
        MergeError: the recipe, a checkpoint, or their fit is wrong.
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
    settings, alignment, found = loaded.tokenizer_settings(), None, models
    if settings is not None:
        from merge_models.merge.tokenizer.alignment import align

        base = loaded.model_names().index(loaded.base_model) if loaded.base_model else None
        alignment = align(settings, models, base, assembly.donor, aides)
        models = alignment.models
    plan = make_plan(models, assembly, out_dtype, loaded.seed)
    adapted = any(len(model.paths) > 1 for model in opened.values())
    plan = replace(plan, notes=differences(Case(loaded, plan, alignment, adapted)))
    if plan.donor != assembly.donor:
        template = _template(loaded, found, plan.donor)
    donor = models[plan.donor]
    plan = replace(plan, remarks=(*plan.remarks, *matched, *_module_remarks(models, donor)))
    written = {output.name for output in plan.outputs()}
    made = ("format", RECIPE_KEY, RECIPE_DIGEST_KEY, *written)
    keep = {key: value for key, value in donor.metadata.items() if key not in made}
    told = {**keep, **recipe_metadata(names.public)}
    limit = parse_size(shard_size)
    layout = plan_layout(plan.outputs(), limit, told)
    sidecars = _sidecars(donor)
    if alignment is not None:
        sidecars = sidecars.without_tokenizer()
    prepared = Prepared(
        loaded, names, models, plan, layout, sidecars, aides, alignment, template, limit, allow_pickle
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
