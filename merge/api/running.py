"""Carries out one recipe: from folders to a folder, or from models in memory to a state dict."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, overload

from merge_models.merge.api.in_memory import InMemory, merge_in_memory
from merge_models.merge.checkpoint.digest import FAST, STRONG, Kinds
from merge_models.merge.checkpoint.outputs.layout import DEFAULT_SHARD_SIZE
from merge_models.merge.checkpoint.outputs.staging import check_target
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.checkpoint.threads import workers
from merge_models.merge.contract.kernel import Figures
from merge_models.merge.errors import RecipeError, did_you_mean, printable
from merge_models.merge.publishing.identity import Names
from merge_models.merge.publishing.preparation import prepare
from merge_models.merge.publishing.prepared import Prepared
from merge_models.merge.publishing.writing import Writing, check_space
from merge_models.merge.recipes.recipe import Recipe, as_recipe
from merge_models.merge.running.memory import budget, needed
from merge_models.merge.running.options import RunOptions
from merge_models.merge.running.survival import Rounded, rounded
from merge_models.merge.sizes import parse_size

if TYPE_CHECKING:
    from torch import Tensor

_T = TypeVar("_T")
PathLike = Union[str, "os.PathLike[str]"]
_DIGESTS = {"fast": FAST, "strong": STRONG}


@dataclass(frozen=True)
class Earlier:
    """What a recipe builds on that stands before it in the same file.

    Attributes:
        names: the recipes before it, and their models.
        places: where their results are, by name.
    """

    names: tuple[Names, ...] = ()
    places: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeResult:
    """What a merge from folder to folder has done.

    Attributes:
        path: the output folder.
        seconds: time taken, without that of the caller's own ``planned`` and ``review``.
        bytes_read, bytes_written: of tensors.
        figures: what the strategy found worth telling, by tensor.
        resumed: tensors that an earlier, stopped run of the same merge had finished.

    >>> from merge_models.merge import merge
    >>> result = merge(["runs/a", "runs/b"], out="runs/merged")
    >>> result.path.name, result.bytes_written
    ('merged', 24)
    """

    path: Path
    seconds: float
    bytes_read: int
    bytes_written: int
    figures: dict[str, Figures]
    resumed: int = 0

    @property
    def rounded(self) -> Rounded | None:
        """What rounding did to the change that the merge made; None for outputs as wide as float32."""
        return rounded(self.figures)


@overload
def run_recipe(
    recipe: Recipe | Mapping[str, Any] | PathLike,
    out: None = None,
    *,
    models: Mapping[str, InMemory],
    threads: int | None = None,
    on_nonfinite: str = "error",
) -> dict[str, Tensor]: ...


@overload
def run_recipe(
    recipe: Recipe | Mapping[str, Any] | PathLike, out: PathLike, **options: Any
) -> MergeResult: ...


def run_recipe(
    recipe: Recipe | Mapping[str, Any] | PathLike,
    out: PathLike | None = None,
    *,
    models: Mapping[str, InMemory] | None = None,
    threads: int | None = None,
    on_nonfinite: str = "error",
    **options: Any,
) -> MergeResult | dict[str, Tensor]:
    """Runs a recipe: into an output folder, or on models in memory.

    Args:
        recipe: a recipe, what its YAML holds as plain values, or the path of one.
        out: the output folder.
        models: modules or state dicts by the names that the recipe has for them; then there is no ``out``.
        threads: workers; by default one per core. The result does not depend on it.
        on_nonfinite: ``error`` or ``keep``, for NaN and Inf.
        **options: further options of :func:`write_recipe`, for folders.

    Returns:
        A :class:`MergeResult`; or for models in memory a state dict, on the first model's devices.

    Raises:
        MergeError: anything is wrong with the recipe, the models, or the place for the output.

    >>> import torch
    >>> states = {"a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}}
    >>> recipe = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
    >>> run_recipe(recipe, models=states)["w"]
    tensor([0.5000, 0.5000])
    """
    if models is None:
        if out is None:
            raise RecipeError("a merge of folders needs out=FOLDER; one in memory needs models=")
        check_options(options)
        return write_recipe(recipe, out, threads=threads, on_nonfinite=on_nonfinite, **options)
    check_options(options)
    if out is not None or options:
        raise RecipeError("out= and its options are for merging folders; save the returned state dict")
    running = RunOptions(workers(threads), check_nonfinite(on_nonfinite))
    return merge_in_memory(as_recipe(recipe), models, running)


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the names of options.

    Raises:
        RecipeError: there is none of that name.
    """
    parameters = inspect.signature(write_recipe).parameters
    known = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name in ("weight", "weights"):
            raise RecipeError(
                f"merge() takes no {name}=; give it to the strategy: merge(models, Linear(weight=(0.5, 0.5)))"
            )
        if name not in known:
            raise RecipeError(f"merge() takes no {name}={did_you_mean(name, known)}")


def write_recipe(
    recipe: Recipe | Mapping[str, Any] | PathLike,
    out: PathLike,
    *,
    overwrite: bool = False,
    restart: bool = False,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    max_memory: int | str | None = None,
    on_nonfinite: str = "error",
    output_digests: str = "strong",
    input_digests: str = "fast",
    allow_pickle: bool = False,
    progress: Callable[[int], None] | None = None,
    planned: Callable[[Prepared], None] | None = None,
    review: Callable[[Path, Prepared], str] | None = None,
    earlier: Earlier | None = None,
) -> MergeResult:
    """Runs a recipe; the output folder appears complete, or not at all.

    Where the same merge was stopped before, it goes on: what was finished is checked and kept.

    Args:
        recipe: a recipe, what its YAML holds as plain values, or the path of one.
        out: the output folder.
        overwrite: replace a checkpoint that stands there.
        restart: begin anew, whatever an unfinished merge into ``out`` has left.
        shard_size: bytes per output file at most, as a number or as ``"5GB"``.
        threads: workers; by default one per core. The result does not depend on it.
        max_memory: bytes that the process may take, as a number or as ``"2GB"``: fewer workers run, and fewer
            blocks are held, where it takes that. By default as many as there are.
        on_nonfinite: ``error`` or ``keep``, for NaN and Inf.
        output_digests: how the manifest tells the output's tensors: ``strong`` (BLAKE3, which nobody can
            forge) or ``fast`` (XXH3, which finds every accident).
        input_digests: the same for the inputs that were read.
        allow_pickle: read files of ``torch.save`` too, such as ``pytorch_model.bin``; nothing of them is run
            (``torch.load(weights_only=True)``), and their tensors are read by block like all others.
        progress: called with the bytes just written, or found written already, from any worker.
        planned: called with the plan before anything is written.
        review: called with the finished folder before it is published, under another name; what it returns
            (Markdown) ends the model card. If it raises, nothing is published and no work is lost.
        earlier: what earlier recipes of the same file have made.

    Raises:
        MergeError: anything is wrong with the recipe, the models, or the place for the output.
    """
    check_nonfinite(on_nonfinite)
    kinds = Kinds(_kind("output_digests", output_digests), _kind("input_digests", input_digests))
    clock, count = _Clock(), workers(threads)
    target, before = folder_path(out, "out"), earlier or Earlier()
    results = [str(names.located.name) for names in before.names]
    prepared = prepare(recipe, shard_size, before.places, results, allow_pickle=allow_pickle)
    try:
        check_target(target, prepared.paths(), overwrite)
        check_space(target, prepared)
        if planned:
            clock.outside(planned, prepared)
        options = _options(prepared, count, max_memory, on_nonfinite, progress)
        judge = None if review is None else partial(clock.outside, review)
        writing = Writing(prepared, target, overwrite, before.names, kinds, judge)
        figures = writing.run(options, restart)
    finally:
        prepared.close()
    plan = prepared.plan
    return MergeResult(target, clock.seconds, plan.bytes_in, plan.bytes_out, figures, writing.resumed)


def check_nonfinite(value: str) -> str:
    if value not in ("error", "keep"):
        raise RecipeError(f"on_nonfinite is 'error' or 'keep', not {printable(repr(value), 80)}")
    return value


def folder_path(value: Any, what: str) -> Path:
    """Returns a folder's path as a caller gives it.

    Raises:
        RecipeError: it is no path.
    """
    if isinstance(value, bytes) or not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise RecipeError(f"{what} is the path of a folder, not {printable(repr(value), 80)}")
    return local_path(value)


def _kind(option: str, value: str) -> str:
    if not isinstance(value, str) or value not in _DIGESTS:
        raise RecipeError(f"{option} is 'fast' or 'strong', not {value!r}")
    return _DIGESTS[value]


class _Clock:
    """The time that a merge takes, without that of functions which the caller gave."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def outside(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Calls a function in time that does not count."""
        began = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self._started += time.monotonic() - began


def _options(
    prepared: Prepared,
    workers: int,
    max_memory: int | str | None,
    on_nonfinite: str,
    progress: Callable[[int], None] | None,
) -> RunOptions:
    plan, recipe = prepared.plan, prepared.recipe
    if max_memory is None:
        need = needed(plan, workers)
    else:
        need = budget(plan, workers, parse_size(max_memory, "memory")).need
    return RunOptions(need.threads, on_nonfinite, progress, recipe.rounding, need.held)
