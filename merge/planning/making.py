"""From an assignment to a task: inputs found, shapes and dtypes checked, the strategy's kernel made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from merge_models.merge.checkpoint.dtypes import BY_CODE, DType, widest
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.checkpoint.sources.tied import EMBEDDINGS, HEADS, find_tensor
from merge_models.merge.contract.case import Case, Inputs, TensorSpec
from merge_models.merge.contract.kernel import Grain
from merge_models.merge.contract.strategy import AbstractStrategy, class_text
from merge_models.merge.errors import MissingRoleError, PlanError, counted
from merge_models.merge.planning.assembly import Assignment
from merge_models.merge.planning.task import Ref, Task
from merge_models.merge.strategies.families.blocks import copy_kernel
from merge_models.merge.strategies.linear import Linear

_TAKE = Linear().resolved(1)
"""How one model's tensor is taken: as it is, but for its dtype."""


def make_task(
    assignment: Assignment, models: Sequence[Source], out_dtype: DType | None = None, seed: int = 0
) -> Task:
    """Makes the task of an assignment.

    Args:
        assignment: which tensors make which.
        models: every model that it refers to.
        out_dtype: dtype of what is made; by default that of the sources, the widest where they differ.
        seed: key of all randomness.

    Raises:
        PlanError: a tensor is missing or has another shape somewhere, or does not fit the strategy.
    """
    name, strategy, places = assignment.name, assignment.strategy, assignment.inputs
    if strategy is not None:
        _check_count(strategy, len(places.parents), places.base is not None)
        if not strategy.base_use.is_origin:
            places = replace(places, base=None)
    refs = places.map(lambda place: _required(models, *place))
    merged = [*refs.parents, *([refs.base] if refs.base else [])]
    if merged and (strategy is None or strategy.needs_equal_shapes):
        _check_shapes(name, models, merged)
    note = assignment.note or _tied_note(places, refs, models)
    if merged and not _is_float(name, models, merged):
        return _copy(name, replace(refs, base=None), seed)
    dtype = out_dtype or (widest([ref.info.own_dtype for ref in merged]) if merged else BY_CODE["F32"])
    case = Case(name, refs.map(lambda ref: _spec(ref.info)), dtype, seed)
    if strategy is None:
        return Task(case, refs, _TAKE.kernel(case), _TAKE, note, is_taken=True)
    try:
        kernel = strategy.kernel(case)
    except MissingRoleError as error:
        raise PlanError(
            f"tensor '{printable(name)}': {class_text(type(strategy))} needs inputs of the role"
            f" '{printable(error.role)}', and the recipe names none; name some, or choose another method"
        ) from None
    task = Task(case, refs, kernel, strategy, note or kernel.note)
    _check_cuts(task)
    return task


def _copy(name: str, refs: Inputs[Ref], seed: int) -> Task:
    """What is not floating point is copied, where all models agree."""
    codes = sorted({ref.info.dtype.code for ref in refs})
    if len(codes) > 1:
        raise PlanError(
            f"tensor '{printable(name)}' is {' and '.join(codes)}; whole numbers are not converted:"
            " save all models with one dtype"
        )
    case = Case(name, refs.map(lambda ref: _spec(ref.info)), refs.parents[0].info.dtype, seed)
    return Task(case, refs, copy_kernel(case), None, "not floating point: must be equal in all models")


def _spec(info: TensorInfo) -> TensorSpec:
    return TensorSpec(info.name, info.shape, info.dtype)


def _tied_note(places: Inputs[tuple[int, str]], refs: Inputs[Ref], models: Sequence[Source]) -> str:
    pairs = zip(places, refs, strict=True)
    tied = [ref.info.name for (model, name), ref in pairs if name not in models[model].tensors]
    return f"read from {printable(min(tied))} where tied" if tied else ""


def _check_cuts(task: Task) -> None:
    """Checks that the inputs and outputs of a task can be cut into blocks as its kernel says."""
    kernel, grain = task.kernel, task.kernel.grain
    if kernel.write is not None and not kernel.outputs:
        raise PlanError(f"{_maker(task)}: writes, but names no outputs; give the kernel some")
    if grain is Grain.TENSOR:
        return
    cut = [spec for role, spec in task.case.inputs.by_role() if role not in kernel.whole]
    for spec in (*cut, *task.outputs):
        ours, theirs = (s.count if grain is Grain.ELEMENT else s.rows for s in (task.domain, spec))
        if ours != theirs:
            raise PlanError(
                f"{_maker(task)}: cuts {list(task.shape)} and {list(spec.shape)} alike by {grain.value};"
                " name the input's role in 'whole', or use Grain.TENSOR"
            )


def _maker(task: Task) -> str:
    return f"tensor '{printable(task.name)}': {class_text(type(task.strategy))}"


def _check_count(strategy: AbstractStrategy, count: int, has_base: bool) -> None:
    low, high = strategy.parents
    if count < low or (high is not None and count > high):
        wanted = f"{low} to {high} models"
        if low == high or high is None:
            wanted = f"{'exactly' if low == high else 'at least'} {counted(low, 'model')}"
        besides = " besides the base" if has_base else ""
        raise PlanError(f"{strategy.name} merges {wanted}, not {count}{besides}")
    if strategy.base_use.is_required and not has_base:
        raise PlanError(
            f"{strategy.name} needs a base model: give one (base_model: in a recipe, --base, base=)"
        )


def _is_float(name: str, models: Sequence[Source], refs: Sequence[Ref]) -> bool:
    floats = {ref.info.dtype.is_float for ref in refs}
    if len(floats) > 1:
        kinds = ", ".join(f"{models[ref.model].label} has {ref.info.dtype.code}" for ref in refs)
        raise PlanError(
            f"tensor '{printable(name)}' is floating point in some models only: {kinds}; save all alike"
        )
    return floats == {True}


def _required(models: Sequence[Source], model: int, name: str) -> Ref:
    info = find_tensor(models[model], name)
    if info is not None:
        return Ref(model, info)
    label = models[model].label
    has = [m for m in models if name in m.tensors]
    whose = f", which {has[0].label} has" if has else ""
    others = {n for m in has for n in m.tensors}
    missing = sum(find_tensor(models[model], n) is None for n in others)
    more = f" (and {missing - 1} more)" if missing > 1 else ""
    raise PlanError(
        f"{label}: has no tensor '{printable(name)}'{whose}{more};"
        " are they the same architecture, saved with all their weights?"
    )


def _check_shapes(name: str, models: Sequence[Source], refs: Sequence[Ref]) -> None:
    first = refs[0]
    for ref in refs[1:]:
        here, there = first.info.shape, ref.info.shape
        if here != there:
            fix = "merge models of one architecture and size"
            if name.endswith((*EMBEDDINGS, *HEADS)) and here[1:] == there[1:]:
                fix = "their vocabularies differ: add 'tokenizer: {source: union}' to the recipe"
            raise PlanError(
                f"tensor '{printable(name)}' is {list(here)} in {models[first.model].label}"
                f" but {list(there)} in {models[ref.model].label}; {fix}"
            )
