"""Several recipes in one file, of which later ones merge what earlier ones made.

All are planned before the first runs: later plans read the earlier outputs' headers before these exist. A
result that is there already serves again only where the recipe, the program and all input files are the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merge_models.merge.api.running import Earlier, MergeResult, PathLike, folder_path, write_recipe
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.outputs.journal import binding_digest
from merge_models.merge.checkpoint.outputs.layout import DEFAULT_SHARD_SIZE
from merge_models.merge.checkpoint.outputs.staging import MANIFEST, check_target, sweep
from merge_models.merge.checkpoint.sources.lora import Places
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.threads import workers
from merge_models.merge.errors import CheckpointError
from merge_models.merge.publishing.identity import Names
from merge_models.merge.publishing.preparation import prepare
from merge_models.merge.publishing.prepared import Prepared
from merge_models.merge.recipes.recipe import Recipe, as_recipes


class PlannedModel:
    """The output of a merge that has not run yet: everything that a plan asks of a model, but no bytes.

    Args:
        label: the recipe's name.
        prepared: its plan.
        target: where it will be.
        tokenizer_folder: where its tokenizer is now.
    """

    def __init__(self, label: str, prepared: Prepared, target: Path, tokenizer_folder: Path) -> None:
        self.label, self.path, self.folder = label, target, target
        self.tokenizer_folder = tokenizer_folder
        self.paths: tuple[Path, ...] = (target,)
        self.files: tuple[Path, ...] = ()
        self.metadata: Mapping[str, str] = {}
        self.config: dict[str, Any] = prepared.config()
        self.nbytes, self.kept_bytes = prepared.plan.bytes_out, 0
        self.tensors = {
            t.name: TensorInfo(t.name, t.dtype, t.shape, target, 0) for t in prepared.plan.outputs()
        }

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        del start, stop, buffer
        raise CheckpointError(f"{self.label}: is planned only; its tensor '{info.name}' is not there yet")

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        return (info,)

    def check_unchanged(self) -> None:
        """Checks nothing, as nothing has been read."""

    def close(self) -> None:
        """Closes nothing, as nothing is open."""


@dataclass(frozen=True)
class Step:
    """One recipe of several.

    Attributes:
        name: its name; the output folder's for the last.
        target: where its result is.
        result: what its merge did; None where an earlier result was used again.
    """

    name: str
    target: Path
    result: MergeResult | None


def targets(recipes: Sequence[Recipe], out: Path, intermediate_dir: Path | None = None) -> list[Path]:
    """Returns where each result goes: the last one to ``out``, the others into a folder beside it."""
    place = intermediate_dir or out.with_name(f"{out.name}.intermediate")
    return [*(place / str(recipe.name) for recipe in recipes[:-1]), out]


@contextmanager
def plan_recipes(
    recipes: Sequence[Recipe],
    places: Sequence[Path],
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    found: Places | None = None,
    *,
    allow_pickle: bool = False,
) -> Iterator[list[Prepared]]:
    """Plans every recipe, the later ones on the plans of the earlier.

    Raises:
        MergeError: one of them cannot be carried out.
    """
    made: list[Prepared] = []
    known: dict[str, Path | DiskSource] = dict(found or {})
    results: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for recipe, target in zip(recipes, places, strict=True):
                prepared = prepare(recipe, shard_size, known, results, allow_pickle=allow_pickle)
                made.append(prepared)
                folder = prepared.donor.tokenizer_folder
                if prepared.alignment is not None:
                    from merge_models.merge.tokenizer.build import save_tokenizer

                    folder = Path(scratch) / str(len(made))
                    save_tokenizer(prepared.alignment.tokenizer, folder)
                if recipe.name is not None:
                    known[recipe.name] = PlannedModel(recipe.name, prepared, target, folder)
                    results.append(recipe.name)
            yield made
        finally:
            for prepared in made:
                prepared.close()


def run_recipes(
    recipes: Sequence[Recipe | Mapping[str, Any]] | PathLike,
    out: PathLike,
    *,
    intermediate_dir: PathLike | None = None,
    overwrite: bool = False,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    started: Callable[[str, bool], None] | None = None,
    places: Mapping[str, Path] | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> list[Step]:
    """Runs recipes one after the other; a later one may name an earlier one as a model.

    Stopped anywhere, the same call goes on: results that are whole serve again, and the merge that was
    stopped keeps what it had finished.

    Args:
        recipes: the path of their file, or recipes one after the other; all but the last have names.
        out: the last one's output folder.
        intermediate_dir: where the other results go and are looked for; ``OUT.intermediate`` by default.
        overwrite: replace a checkpoint that stands at ``out``; outdated intermediate ones always are.
        shard_size: bytes per output file at most.
        started: called with each recipe's name and whether an earlier result serves.
        places: where models are that are not at the path that their name is.
        allow_pickle: read files of ``torch.save`` too.
        **options: further options of :func:`run_recipe`.

    Raises:
        MergeError: anything is wrong with a recipe, the models, or the place for an output.

    >>> models = [{"model": "runs/a"}, {"model": "runs/b"}]
    >>> first = {"name": "half", "merge_method": "linear", "models": models}
    >>> last = {"merge_method": "linear", "models": [{"model": "half"}, {"model": "runs/c"}]}
    >>> [step.name for step in run_recipes([first, last], "runs/merged")]
    ['half', 'merged']
    """
    recipes = as_recipes(recipes)
    place = None if intermediate_dir is None else folder_path(intermediate_dir, "intermediate_dir")
    folders = targets(recipes, folder_path(out, "out"), place)
    workers(options.get("threads"))
    with plan_recipes(recipes, folders, shard_size, places, allow_pickle=allow_pickle) as plans:
        for number, (prepared, folder) in enumerate(zip(plans, folders, strict=True)):
            check_target(folder, prepared.paths(), overwrite or number < len(recipes) - 1)
    known: dict[str, Path] = dict(places or {})
    before: list[Names] = []
    steps: list[Step] = []
    for recipe, folder in zip(recipes, folders, strict=True):
        name, is_last = recipe.name or folder.name, folder is folders[-1]
        names = [step.name for step in steps]
        prepared = prepare(recipe, shard_size, known, names, allow_pickle=allow_pickle)
        prepared.close()
        reused = not is_last and _is_made(folder, prepared)
        if started:
            started(name, reused)
        result = None
        if reused:
            sweep(folder)
        else:
            earlier = Earlier(tuple(before), dict(known))
            result = write_recipe(
                recipe,
                folder,
                overwrite=overwrite or not is_last,
                shard_size=shard_size,
                earlier=earlier,
                allow_pickle=allow_pickle,
                **options,
            )
        known[name] = folder
        before.append(prepared.names)
        steps.append(Step(name, folder, result))
    return steps


def _is_made(folder: Path, prepared: Prepared) -> bool:
    """Whether a folder holds this very merge, whole."""
    digest = binding_digest(prepared.binding())
    if not folder.is_dir() or read_json(folder / MANIFEST).get("digest") != digest:
        return False
    files = [(folder / shard.name, shard.nbytes) for shard in prepared.layout.shards]
    return all(file.is_file() and file.stat().st_size == size for file, size in files)
