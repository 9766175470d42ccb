"""The Python API: merge state dicts in memory, or checkpoints from folder to folder."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, overload

from merge_models.merge.checkpoint.digest import FAST, STRONG, Kinds
from merge_models.merge.checkpoint.dtypes import parse_dtype
from merge_models.merge.checkpoint.layout import DEFAULT_SHARD_SIZE
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.checkpoint.staging import check_target
from merge_models.merge.checkpoint.threads import workers
from merge_models.merge.errors import PlanError, RecipeError, did_you_mean, printable
from merge_models.merge.identity import Names
from merge_models.merge.in_memory import InMemory, merge_in_memory
from merge_models.merge.memory import budget, needed
from merge_models.merge.preparation import Prepared, prepare
from merge_models.merge.recipe import Recipe, check_rounding, check_seed, recipe_of
from merge_models.merge.sizes import parse_size
from merge_models.merge.strategies.base import AbstractStrategy, Figures
from merge_models.merge.strategies.linear import Linear
from merge_models.merge.survival import Rounded, rounded
from merge_models.merge.work import RunOptions
from merge_models.merge.writing import Writing, check_space

if TYPE_CHECKING:
    import torch
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


def run_recipe(
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
    _check_nonfinite(on_nonfinite)
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


def _check_nonfinite(value: str) -> str:
    if value not in ("error", "keep"):
        raise RecipeError(f"on_nonfinite is 'error' or 'keep', not {printable(repr(value), 80)}")
    return value


def folder_path(value: Any, what: str) -> Path:
    """A folder's path as a caller gives it.

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
    return RunOptions(need.threads, on_nonfinite, recipe.seed, progress, recipe.rounding, need.held)


@overload
def merge(
    models: Sequence[InMemory],
    strategy: AbstractStrategy | None = None,
    *,
    base: InMemory | None = None,
    out: None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    threads: int | None = None,
    on_nonfinite: str = "error",
) -> dict[str, Tensor]: ...


@overload
def merge(
    models: Sequence[PathLike],
    strategy: AbstractStrategy | None = None,
    *,
    base: PathLike | None = None,
    out: PathLike,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    threads: int | None = None,
    on_nonfinite: str = "error",
    **options: Any,
) -> MergeResult: ...


def merge(
    models: Sequence[PathLike] | Sequence[InMemory],
    strategy: AbstractStrategy | None = None,
    *,
    base: PathLike | InMemory | None = None,
    out: PathLike | None = None,
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    threads: int | None = None,
    on_nonfinite: str = "error",
    **options: Any,
) -> dict[str, Tensor] | MergeResult:
    """Merges models: state dicts or modules in memory, or checkpoints from folder to folder.

    Args:
        models: state dicts, ``nn.Module``s, or paths and Hub ids; all of one kind.
        strategy: what to do; uniform ``Linear()`` by default.
        base: the base model, of the same kind as ``models``. Where the strategy measures deltas from it and
            it is among ``models`` too (the same folder, or the same tensors), it is not merged with itself.
        out: the output folder; needed for paths, refused for models in memory.
        dtype: dtype of the output, such as ``"bfloat16"`` or torch's; by default that of the models.
        seed: key of all randomness.
        rounding: ``nearest``, or ``stochastic`` (unbiased, keyed by the seed) for outputs narrower than
            float32.
        threads: workers; by default one per core. The result does not depend on it.
        on_nonfinite: ``error`` or ``keep``, for NaN and Inf.
        **options: further options of :func:`run_recipe`, for paths.

    Returns:
        A state dict for models in memory (on the first model's devices), a :class:`MergeResult` for paths.

    Raises:
        MergeError: anything is wrong with models, strategy or output.
    """
    chosen = strategy if strategy is not None else Linear()
    if not isinstance(chosen, AbstractStrategy):
        raise RecipeError(f"strategy is {chosen!r}; give an object, such as Linear()")
    single = isinstance(models, (str, os.PathLike, Mapping)) or hasattr(models, "state_dict")
    if single or not isinstance(models, Iterable):
        raise RecipeError("models is one model; give a list of them")
    models = cast("Sequence[PathLike] | Sequence[InMemory]", list(models))
    if not models:
        raise PlanError("there are no models to merge")
    given = [*models, *([base] if base is not None else [])]
    if len({isinstance(model, (str, os.PathLike)) for model in given}) > 1:
        raise RecipeError("some models are paths and some are in memory; give all of one kind")
    if isinstance(models[0], (str, os.PathLike)):
        if out is None:
            raise RecipeError("merging folders needs out=FOLDER")
        _check_options(options)
        paths = cast("Sequence[PathLike]", models)
        recipe = recipe_of(chosen, paths, cast("PathLike | None", base), dtype, seed, rounding)
        return run_recipe(recipe, out, threads=threads, on_nonfinite=on_nonfinite, **options)
    _check_options(options)
    if out is not None or options:
        raise RecipeError("out= and its options are for merging folders; save the returned state dict")
    held = cast("Sequence[InMemory]", models)
    written = parse_dtype(str(dtype)) if dtype else None
    running = RunOptions(
        workers(threads),
        _check_nonfinite(on_nonfinite),
        check_seed(seed),
        rounding=check_rounding(rounding),
    )
    return merge_in_memory(held, chosen, cast("InMemory | None", base), written, running)


def _check_options(options: Mapping[str, Any]) -> None:
    known = [name for name, p in inspect.signature(run_recipe).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name in ("weight", "weights"):
            raise RecipeError(
                f"merge() takes no {name}=; give it to the strategy: merge(models, Linear(weight=(0.5, 0.5)))"
            )
        if name not in known:
            raise RecipeError(f"merge() takes no {name}={did_you_mean(name, known)}")


@overload
def soup(
    models: Sequence[InMemory],
    *,
    weights: Sequence[float] | None = None,
    dtype: str | torch.dtype | None = None,
) -> dict[str, Tensor]: ...


@overload
def soup(
    models: Sequence[PathLike], *, weights: Sequence[float] | None = None, out: PathLike, **options: Any
) -> MergeResult: ...


def soup(
    models: Any, *, weights: Sequence[float] | None = None, **options: Any
) -> dict[str, Tensor] | MergeResult:
    """The model soup: the weighted mean of models; see :func:`merge` for everything else."""
    shares: Any = tuple(weights) if isinstance(weights, Iterable) else weights
    return merge(models, Linear(weight=1.0 if shares is None else shares), **options)
