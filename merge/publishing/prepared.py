"""A recipe made ready to run, and the kind of folder that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from merge_models.merge.checkpoint.outputs.layout import DEFAULT_SHARD_SIZE, Layout
from merge_models.merge.checkpoint.outputs.staging import Staging
from merge_models.merge.checkpoint.sidecars import Sidecars
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.planning.parentage import Relative, relatives
from merge_models.merge.planning.plan import Plan
from merge_models.merge.publishing.identity import Names, binding
from merge_models.merge.recipes.recipe import Recipe
from merge_models.merge.running.memory import Need, needed

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
        target: what kind of folder is made.

    >>> from merge_models.merge import prepare
    >>> prepared = prepare({"merge_method": "linear", "models": [{"model": "runs/a"}]})
    >>> prepared.plan.bytes_in, prepared.donor.label
    (24, 'runs/a')
    >>> prepared.close()
    """

    recipe: Recipe
    names: Names
    models: tuple[DiskSource, ...]
    plan: Plan
    layout: Layout
    sidecars: Sidecars
    target: Target
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
        """Returns (role, checkpoint) of every model."""
        merged = [(own.role, model) for own, model in zip(self.relatives, self.models, strict=True)]
        return [*merged, *(("tokens", model) for model in self.aides)]

    @cached_property
    def relatives(self) -> tuple[Relative, ...]:
        """What each of ``models`` is to the merge."""
        base = self.recipe.base_model
        return relatives(self.plan, None if base is None else self.recipe.model_names().index(base))

    def shares(self) -> dict[str, float]:
        """Returns how much of each parent is meant to be in the merge, by label; empty where that is not
        known."""
        pairs = zip(self.models, self.relatives, strict=True)
        return {model.label: own.share for model, own in pairs if own.share is not None}

    def binding(self) -> dict[str, Any]:
        """Returns all that the output's bytes depend on."""
        return binding(self.names.located, self.plan, self.layout, self.roles(), self.sidecars, {})

    def paths(self) -> list[Path]:
        """Returns every place that is read."""
        return [path for _, model in self.roles() for path in model.paths]

    def memory(self, threads: int) -> Need:
        """Returns what a run with so many threads needs at most, beyond Python and its libraries."""
        return needed(self.plan, threads)

    def config(self) -> dict[str, Any]:
        """Returns config.json of the output; empty where the donor has none.

        Raises:
            PlanError: the donor's does not say where it counts layers that the recipe slices.
        """
        return self.target.config(self)

    def close(self) -> None:
        """Closes every input file."""
        for _, model in self.roles():
            model.close()


class Target(Protocol):
    """A kind of folder. Card and manifest are written for all kinds alike."""

    @property
    def name(self) -> str:
        """What manifests call it."""
        ...

    @property
    def stem(self) -> str:
        """What the names of weight files begin with: ``STEM.safetensors``, ``STEM-00001-of-00002.…``."""
        ...

    def config(self, prepared: Prepared) -> dict[str, Any]:
        """Returns the content of config.json; empty where there is none.

        Raises:
            PlanError: no config would fit what is made.
        """
        ...

    def write_files(self, prepared: Prepared, staging: Staging) -> None:
        """Writes the small files that stand beside the weights."""
        ...
