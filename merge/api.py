"""The Python API: merge state dicts in memory, or checkpoints from folder to folder."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, cast, overload

import numpy as np

from merge_models.merge.assembly import Assembly, assemble, assign_whole
from merge_models.merge.card import REVIEW_MARK, described, manifest, model_card, sealed
from merge_models.merge.checkpoint.digest import FAST, STRONG, digest_bytes, digest_file
from merge_models.merge.checkpoint.dtypes import DType, parse_dtype
from merge_models.merge.checkpoint.journal import binding_digest
from merge_models.merge.checkpoint.layout import DEFAULT_SHARD_SIZE, Layout, parse_size, plan_layout
from merge_models.merge.checkpoint.lora import Places, open_model
from merge_models.merge.checkpoint.sidecars import Sidecars, find_sidecars, output_config, stacked_config
from merge_models.merge.checkpoint.source import DiskSource, StateDict, read_json
from merge_models.merge.checkpoint.staging import MANIFEST, Staging, check_target, free_space, staged_bytes
from merge_models.merge.errors import ChangedError, MergeError, PlanError, RecipeError, did_you_mean
from merge_models.merge.identity import (
    RECIPE_DIGEST_KEY,
    RECIPE_KEY,
    Names,
    binding,
    names_of,
    recipe_metadata,
)
from merge_models.merge.lazy import LazyModule
from merge_models.merge.memory import Need, load_libraries, memory_now, needed, within
from merge_models.merge.output import StagedOutput
from merge_models.merge.plan import Plan, make_plan
from merge_models.merge.recipe import Recipe, check_rounding, load_recipe, recipe_of
from merge_models.merge.run import RunOptions, execute
from merge_models.merge.strategies.base import AbstractStrategy, BaseModel, Figures
from merge_models.merge.strategies.linear import Linear
from merge_models.merge.survival import Rounded, rounded
from merge_models.merge.tied import untied

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from merge_models.merge.tokenizer.alignment import Alignment
else:
    torch = LazyModule("torch")

PathLike = Union[str, "os.PathLike[str]"]
InMemory = Union[Mapping[str, "Tensor"], "Module"]
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"


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
        base = self.recipe.base_model
        merged = [("base" if model.label == base else "parent", model) for model in self.models]
        return [*merged, *(("tokens", model) for model in self.aides)]

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
        """config.json of the output; empty where the donor has none."""
        dtype = self.plan.main_dtype()
        config = dict(self.donor.config)
        if not config or dtype is None:
            return config
        if self.plan.layers is not None:
            origins = [(self.models[model].config, layer) for model, layer in self.plan.layers]
            config = stacked_config(config, origins)
        if self.alignment is not None:
            config = self.alignment.remapped(config)
        return output_config(untied(config) if self.plan.untied else config, dtype)

    def close(self) -> None:
        """Closes every input file."""
        for _, model in self.roles():
            model.close()


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
        seconds: time taken.
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


def default_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(
    recipe: Recipe | PathLike,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    places: Places | None = None,
    results: Sequence[str] = (),
    *,
    allow_pickle: bool = False,
) -> Prepared:
    """Opens a recipe's checkpoints and plans the merge, from headers and configs alone.

    Args:
        recipe: a recipe, or the path of one.
        shard_size: bytes per output file at most.
        places: where models are that are not at the path that their name is: results of earlier recipes.
        results: which of these names are those of earlier recipes.
        allow_pickle: read files of ``torch.save`` too; without code, by ``torch.load(weights_only=True)``.

    Raises:
        MergeError: the recipe, a checkpoint, or their fit is wrong.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    out_dtype = loaded.output_dtype()
    models = tuple(open_model(n, places, allow_pickle=allow_pickle) for n in loaded.model_names())
    aides = tuple(open_model(n, places, allow_pickle=allow_pickle) for n in loaded.aide_names())
    opened = {model.label: model for model in (*models, *aides)}
    names = names_of(loaded, opened, results)
    assembly = assemble(loaded, models)
    template = None
    if loaded.chat_template is not None:
        from merge_models.merge.tokenizer.chat import choose_template

        template = choose_template(loaded.chat_template, models, models[assembly.donor])
    settings, alignment = loaded.tokenizer_settings(), None
    if settings is not None:
        from merge_models.merge.tokenizer.alignment import align

        base = loaded.model_names().index(loaded.base_model) if loaded.base_model else None
        alignment = align(settings, models, base, assembly.donor, aides)
        models = alignment.models
    plan = make_plan(models, assembly, out_dtype)
    if alignment is not None:
        plan = replace(plan, notes=(*plan.notes, *alignment.notes))
    donor = models[plan.donor]
    written = {tensor.name for tensor in plan.tensors}
    made = ("format", RECIPE_KEY, RECIPE_DIGEST_KEY, *written)
    keep = {key: value for key, value in donor.metadata.items() if key not in made}
    told = {**keep, **recipe_metadata(names.public)}
    limit = parse_size(shard_size)
    layout = plan_layout(plan.outputs(), limit, told)
    sidecars = _sidecars(donor)
    if alignment is not None:
        sidecars = sidecars.without_tokenizer()
    return Prepared(
        loaded, names, models, plan, layout, sidecars, aides, alignment, template, limit, allow_pickle
    )


def _sidecars(donor: DiskSource) -> Sidecars:
    sidecars = Sidecars(donor.folder, (), ())
    if donor.path.is_dir():
        sidecars = find_sidecars(donor.path, [file.name for file in donor.files])
    if donor.tokenizer_folder != donor.folder:
        sidecars = sidecars.with_tokenizer_of(donor.tokenizer_folder)
    return sidecars


def run_recipe(
    recipe: Recipe | PathLike,
    out: PathLike,
    *,
    overwrite: bool = False,
    restart: bool = False,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    threads: int | None = None,
    max_memory: int | str | None = None,
    on_nonfinite: str = "error",
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
        recipe: a recipe, or the path of one.
        out: the output folder.
        overwrite: replace a checkpoint that stands there.
        restart: begin anew, whatever an unfinished merge into ``out`` has left.
        shard_size: bytes per output file at most, as a number or as ``"5GB"``.
        threads: workers; by default one per core. The result does not depend on it.
        max_memory: bytes that the process may take, as a number or as ``"2GB"``: fewer workers run, and fewer
            blocks are held, where it takes that. By default as many as there are.
        on_nonfinite: ``error`` or ``keep``, for NaN and Inf.
        input_digests: how the manifest tells the inputs that were read: ``fast`` (XXH3, finds every accident)
            or ``strong`` (BLAKE3, which nobody can forge).
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
    if on_nonfinite not in ("error", "keep"):
        raise RecipeError(f"on_nonfinite is 'error' or 'keep', not {on_nonfinite!r}")
    if input_digests not in _INPUT_KINDS:
        raise RecipeError(f"input_digests is 'fast' or 'strong', not {input_digests!r}")
    started = time.monotonic()
    target, before = Path(out), earlier or Earlier()
    results = [str(names.located.name) for names in before.names]
    prepared = prepare(recipe, shard_size, before.places, results, allow_pickle=allow_pickle)
    try:
        check_target(target, prepared.paths(), overwrite)
        _check_space(target, prepared)
        if planned:
            planned(prepared)
        options = _options(prepared, threads, max_memory, on_nonfinite, progress)
        writing = _Writing(prepared, target, overwrite, before.names, _INPUT_KINDS[input_digests], review)
        figures = writing.run(options, restart)
    finally:
        prepared.close()
    plan, seconds = prepared.plan, time.monotonic() - started
    return MergeResult(target, seconds, plan.bytes_in, plan.bytes_out, figures, writing.resumed)


def _options(
    prepared: Prepared,
    threads: int | None,
    max_memory: int | str | None,
    on_nonfinite: str,
    progress: Callable[[int], None] | None,
) -> RunOptions:
    plan, recipe, workers = prepared.plan, prepared.recipe, threads or default_threads()
    need = needed(plan, workers)
    if max_memory is not None:
        load_libraries(plan)
        need = within(plan, workers, parse_size(max_memory, "memory"), memory_now())
    return RunOptions(need.threads, on_nonfinite, recipe.seed, progress, recipe.rounding, need.held)


_INPUT_KINDS = {"fast": FAST, "strong": STRONG}


def _check_space(target: Path, prepared: Prepared) -> None:
    needed = sum(shard.nbytes for shard in prepared.layout.shards) - staged_bytes(target, prepared.layout)
    free = free_space(target)
    if needed > free:
        raise PlanError(
            f"output {target}: needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free;"
            " make room or choose another disk"
        )


class _Writing:
    """One merge to disk: staged, digested, noted, published.

    Attributes:
        resumed: how many tensors an earlier run had finished.
    """

    def __init__(
        self,
        prepared: Prepared,
        target: Path,
        overwrite: bool,
        before: tuple[Names, ...],
        input_kind: str,
        review: Callable[[Path, Prepared], str] | None,
    ) -> None:
        self._prepared, self._before, self._review = prepared, before, review
        self._binding = prepared.binding()
        self._staging = Staging(target, prepared.layout, overwrite)
        self._output = StagedOutput(self._staging, prepared.plan, input_kind)
        self.resumed = 0

    def run(self, options: RunOptions, restart: bool) -> dict[str, Figures]:
        """Goes on or begins; returns what is told of tensors.

        Raises:
            MergeError: anything fails; what was finished is kept for the next run.
        """
        records = self._staging.begin(self._binding, restart)
        try:
            self._staging.allocate()
            finished = self._output.recover(records, options.threads)
            self.resumed = len(finished)
            if options.progress:
                for tensor in self._prepared.plan.tensors:
                    options.progress(tensor.nbytes if tensor.name in finished else 0)
            options = replace(options, finished=finished, watch=self._output.watch)
            before = dict(self._output.figures)
            figures = {**execute(self._prepared.plan, self._output, options), **before}
            self._on_nonfinite = options.on_nonfinite
            self._check_inputs()
            self._write_small_files(options.threads)
            self._check_inputs()
            self._staging.publish()
        except BaseException as failure:
            self._leave(failure, len(records))
            raise
        return {t.name: figures[t.name] for t in self._prepared.plan.tensors if t.name in figures}

    def _check_inputs(self) -> None:
        for _, model in self._prepared.roles():
            model.check_unchanged()

    def _leave(self, failure: BaseException, noted: int) -> None:
        """Keeps what is finished and says so in the failure's text; cleans up where nothing is."""
        done = max(len(self._output.digests), noted)
        never = isinstance(failure, (PlanError, RecipeError, ChangedError))  # will not go on
        if not done or never or self._staging.is_published:
            self._staging.discard()
            return
        self._staging.close()
        hint = (
            f"{done} of {len(self._prepared.plan.tensors)} tensors are finished and kept in"
            f" {self._staging.home.name}: the same command goes on from there, or from the start with"
            " --restart (restart=True)"
        )
        if isinstance(failure, (MergeError, KeyboardInterrupt)):
            failure.args = (f"{failure}; {hint}" if str(failure) else hint,)

    def _write_small_files(self, threads: int) -> None:
        prepared, staging = self._prepared, self._staging
        for name, data in prepared.sidecars.contents():
            staging.write_bytes(name, data)
        config = prepared.config()
        if config:
            staging.write_json("config.json", config)
        _write_tokenizer(prepared, staging)
        staging.write_index()
        every = [*self._before, prepared.names]
        repositories = [
            part.repository for names in every for part in names.parts.values() if part.repository
        ]
        library = _library(config, staging.folder)
        card = model_card([names.public for names in every], repositories, library)
        if self._review is not None:
            review = self._review(staging.folder, prepared).strip()
            card = f"{card.rstrip()}\n\n{REVIEW_MARK}\n\n{review}\n"
        staging.write_text("README.md", card)
        staging.write_text(MANIFEST, sealed(self._record(threads)))

    def _record(self, threads: int) -> dict[str, Any]:
        """The manifest, all but its seal."""
        prepared, staging = self._prepared, self._staging
        read = self._output.complete(threads)
        record = manifest(
            prepared.names, prepared.plan, prepared.layout, prepared.roles(), self._output.figures, read
        )
        if self._before:
            record["earlier_recipes"] = [names.located.document() for names in self._before]
            parts = {text: part for names in self._before for text, part in names.parts.items()}
            record["models"] = {**described(parts), **record["models"]}
        record["options"] = {"on_nonfinite": self._on_nonfinite, "allow_pickle": prepared.allow_pickle}
        record["output"]["shard_size"] = prepared.shard_size
        record["digest"] = binding_digest(self._binding)
        record["digests"] = {
            "headers": {shard.name: digest_bytes(shard.header) for shard in prepared.layout.shards},
            "files": {name: digest_file(staging.folder / name) for name in staging.small_files()},
            "tensors": {t.name: self._output.digests[t.name] for t in prepared.plan.tensors},
        }
        return record


def _library(config: Mapping[str, Any], folder: Path) -> str | None:
    """What hubs shall say loads the output."""
    if (folder / "modules.json").is_file():
        return "sentence-transformers"
    return "transformers" if config.get("architectures") else None


def _write_tokenizer(prepared: Prepared, staging: Staging) -> None:
    """What a recipe asks for beyond the donor's own tokenizer files."""
    alignment, template = prepared.alignment, prepared.chat_template
    if alignment is not None:
        from merge_models.merge.tokenizer.build import save_tokenizer

        save_tokenizer(alignment.tokenizer, staging.folder)
        generation = read_json(staging.folder / GENERATION)
        if generation:
            staging.write_json(GENERATION, alignment.remapped(generation))
    if template is not None:
        staging.write_text("chat_template.jinja", template)
        settings = read_json(staging.folder / TOKENIZER)
        if settings:  # where transformers before 4.50 look for it
            staging.write_json(TOKENIZER, {**settings, "chat_template": template})


class _MemorySink:
    """Blocks are computed where they stay: in the output tensors."""

    def __init__(self, plan: Plan) -> None:
        self.tensors = {
            t.name: torch.empty(t.shape, dtype=getattr(torch, t.dtype.torch_name)) for t in plan.tensors
        }
        self._bytes = {
            name: tensor.reshape(-1).view(torch.uint8).numpy()
            for name, tensor in self.tensors.items()
            if tensor.numel()
        }

    def buffer(self, name: str, start: int, stop: int, scratch: np.ndarray) -> np.ndarray:
        del scratch
        return self._bytes[name][start:stop]

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        del name, start, data

    def finish(self, name: str, figures: Figures) -> None:
        del name, figures


@overload
def merge(
    models: Sequence[InMemory],
    strategy: AbstractStrategy | None = None,
    *,
    base: InMemory | None = None,
    out: None = None,
    dtype: str | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    threads: int | None = None,
) -> dict[str, Tensor]: ...


@overload
def merge(
    models: Sequence[PathLike],
    strategy: AbstractStrategy | None = None,
    *,
    base: PathLike | None = None,
    out: PathLike,
    dtype: str | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    threads: int | None = None,
    **options: Any,
) -> MergeResult: ...


def merge(
    models: Sequence[PathLike] | Sequence[InMemory],
    strategy: AbstractStrategy | None = None,
    *,
    base: PathLike | InMemory | None = None,
    out: PathLike | None = None,
    dtype: str | None = None,
    seed: int = 0,
    rounding: str = "nearest",
    threads: int | None = None,
    **options: Any,
) -> dict[str, Tensor] | MergeResult:
    """Merges models: state dicts or modules in memory, or checkpoints from folder to folder.

    Args:
        models: state dicts, ``nn.Module``s, or paths and Hub ids; all of one kind.
        strategy: what to do; uniform ``Linear()`` by default.
        base: the base model, of the same kind as ``models``.
        out: the output folder; needed for paths, refused for models in memory.
        dtype: dtype of the output, such as ``"bfloat16"``; by default that of the models.
        seed: key of all randomness.
        rounding: ``nearest``, or ``stochastic`` (unbiased, keyed by the seed) for outputs narrower than
            float32.
        threads: workers; by default one per core. The result does not depend on it.
        **options: further options of :func:`run_recipe`, for paths.

    Returns:
        A state dict for models in memory (on the first model's devices), a :class:`MergeResult` for paths.

    Raises:
        MergeError: anything is wrong with models, strategy or output.
    """
    chosen = strategy if strategy is not None else Linear()
    if not isinstance(chosen, AbstractStrategy):
        raise RecipeError(f"strategy is {chosen!r}; give an object, such as Linear()")
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
        return run_recipe(recipe, out, threads=threads, **options)
    _check_options(options)
    if out is not None or options:
        raise RecipeError("out= and its options are for merging folders; save the returned state dict")
    held = cast("Sequence[InMemory]", models)
    written = parse_dtype(dtype) if dtype else None
    running = RunOptions(threads or default_threads(), seed=seed, rounding=check_rounding(rounding))
    return _merge_in_memory(held, chosen, cast("InMemory | None", base), written, running)


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
    models: Sequence[InMemory], *, weights: Sequence[float] | None = None, dtype: str | None = None
) -> dict[str, Tensor]: ...


@overload
def soup(
    models: Sequence[PathLike], *, weights: Sequence[float] | None = None, out: PathLike, **options: Any
) -> MergeResult: ...


def soup(
    models: Any, *, weights: Sequence[float] | None = None, **options: Any
) -> dict[str, Tensor] | MergeResult:
    """The model soup: the weighted mean of models; see :func:`merge` for everything else."""
    return merge(models, Linear(weight=1.0 if weights is None else tuple(weights)), **options)


def _merge_in_memory(
    models: Sequence[InMemory],
    strategy: AbstractStrategy,
    base: InMemory | None,
    dtype: DType | None,
    options: RunOptions,
) -> dict[str, Tensor]:
    if base is not None and strategy.base_is_parent:
        models = [base, *(model for model in models if model is not base)]
    parents = [StateDict(_state(model), f"model {number}") for number, model in enumerate(models)]
    base_source = None if base is None else StateDict(_state(base), "base")
    resolved = strategy.resolved(len(parents))
    if resolved.base_use is BaseModel.UNUSED:
        base_source = None
    sources = [*parents, *([base_source] if base_source is not None else [])]
    base_index = len(parents) if base_source is not None else None
    whole = assign_whole(sources, range(len(parents)), base_index, lambda name, at: resolved)
    assembly = Assembly(tuple(whole[0]), 0 if base_index is None else base_index, tuple(whole[1]))
    plan = make_plan(sources, assembly, dtype)
    sink = _MemorySink(plan)
    execute(plan, sink, options)
    first = _state(models[0])
    return {
        name: tensor.to(first[name].device) if name in first else tensor
        for name, tensor in sink.tensors.items()
    }


def _state(model: InMemory) -> Mapping[str, Tensor]:
    return model if isinstance(model, Mapping) else model.state_dict()
