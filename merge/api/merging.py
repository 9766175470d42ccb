"""The front door: merges models in memory, or checkpoints from folder to folder, by a strategy object."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

from merge_models.merge.api.in_memory import InMemory, named_models
from merge_models.merge.api.running import MergeResult, PathLike, run_recipe
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.errors import PlanError, RecipeError
from merge_models.merge.recipes.recipe import recipe_of
from merge_models.merge.strategies.linear import Linear

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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
    only: Sequence[str] | None = None,
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
    only: Sequence[str] | None = None,
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
    only: Sequence[str] | None = None,
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
        only: patterns of the tensors to merge; the others are taken from the base or first model.
        threads: workers; by default one per core. The result does not depend on it.
        on_nonfinite: ``error`` or ``keep``, for NaN and Inf.
        **options: further options of :func:`run_recipe`, for paths.

    Returns:
        A state dict for models in memory (on the first model's devices), a :class:`MergeResult` for paths.

    Raises:
        MergeError: anything is wrong with models, strategy or output.

    >>> import torch
    >>> from merge_models.merge.strategies import Linear
    >>> merge([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], Linear(weight=(3, 1)))["w"]
    tensor([0.2500, 0.2500])
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
        paths = cast("Sequence[PathLike]", models)
        recipe = recipe_of(chosen, paths, cast("PathLike | None", base), dtype, seed, rounding, only)
        return run_recipe(recipe, out, threads=threads, on_nonfinite=on_nonfinite, **options)
    held = named_models(chosen, cast("Sequence[InMemory]", models), cast("InMemory | None", base))
    recipe = recipe_of(chosen, held.parents, held.base, dtype, seed, rounding, only)
    return run_recipe(
        recipe, cast("Any", out), models=held.models, threads=threads, on_nonfinite=on_nonfinite, **options
    )


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
    """Makes the model soup: the weighted mean of models; see :func:`merge` for everything else.

    >>> import torch
    >>> soup([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"]
    tensor([0.5000, 0.5000])
    """
    shares: Any = tuple(weights) if isinstance(weights, Iterable) else weights
    return merge(models, Linear(weight=1.0 if shares is None else shares), **options)
