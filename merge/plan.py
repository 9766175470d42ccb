"""From parents and strategies to a Plan: every output tensor, its sources, what is done with it.

Made from headers and configs alone. What a plan accepts, a run can carry out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merge_models.merge.assembly import Assembly, Assignment
from merge_models.merge.checkpoint.dtypes import DType, widest
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.layout import OutputTensor
from merge_models.merge.checkpoint.source import Source
from merge_models.merge.checkpoint.stacked import Stack
from merge_models.merge.errors import PlanError, counted
from merge_models.merge.fit import Made, fitting_donor
from merge_models.merge.quantised import check_not_quantised
from merge_models.merge.strategies.base import (
    AbstractKernelStrategy,
    AbstractSpanStrategy,
    AbstractStrategy,
    BaseModel,
    Grain,
    TensorSpec,
)
from merge_models.merge.strategies.linear import Linear
from merge_models.merge.tied import EMBEDDINGS, HEADS, find_tensor, is_head, says_tied

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block; part of the definition of every merge, since sums are folded block by block."""


NUMERICS = 5
"""Raised whenever a kernel or strategy gives other bytes than before: unfinished merges then begin anew."""


@dataclass(frozen=True)
class Ref:
    """A tensor of one of the plan's models."""

    model: int
    info: TensorInfo


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one output tensor.

    Attributes:
        name, shape, dtype: as it will be written.
        action: ``merge`` or ``copy``.
        strategy: the resolved strategy where it is merged.
        parents: its sources.
        base: the tensor in the base, where the strategy uses it.
        note: why it is copied, or read under another name; empty where there is nothing to say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    action: str
    strategy: AbstractStrategy | None
    parents: tuple[Ref, ...]
    base: Ref | None = None
    note: str = ""

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.size

    @property
    def bytes_in(self) -> int:
        """Bytes of one reading of its sources."""
        return sum(ref.info.nbytes for ref in self.sources())

    @property
    def is_taken(self) -> bool:
        """Whether the recipe's ``only`` leaves it out of the merge: it is the donor's."""
        return self.strategy is _TAKE

    @property
    def is_copied(self) -> bool:
        """Whether it is one model's tensor, no merge: at most its dtype changes."""
        return self.action == "copy" or self.is_taken

    def sources(self) -> tuple[Ref, ...]:
        """The parents, and the base last where there is one."""
        return self.parents if self.base is None else (*self.parents, self.base)

    def spec(self, seed: int = 0) -> TensorSpec:
        return TensorSpec(self.name, self.shape, seed)

    def blocks(self) -> list[tuple[int, int]]:
        """Element ranges that are worked on alone; none for an empty tensor."""
        count = self.count
        step = BLOCK_ELEMENTS
        grain = self.strategy.grain if self.strategy else Grain.ELEMENT
        if grain is Grain.TENSOR:
            step = max(count, 1)
        elif grain is Grain.ROW:
            assert self.strategy is not None
            columns = max(count // max(self.spec().rows, 1), 1)
            step = max(BLOCK_ELEMENTS // columns, self.strategy.block_rows(self.spec()), 1) * columns
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def worker_bytes(self) -> int:
        """Memory that a worker needs at most for a block: storage buffers, and wide copies where made.

        Wide are four float64 values an element for every parent, and two more, at the worst.
        """
        largest = max((stop - start for start, stop in self.blocks()), default=0)
        storage = largest * (sum(ref.info.dtype.size for ref in self.sources()) + self.dtype.size)
        if self.strategy is None or is_fused(self.strategy):
            return storage + 4 * largest  # rounded by draws, a block is float32 first
        wide = largest * 8 * (4 * len(self.sources()) + 2)
        own_survey = self.strategy.survey_group is None
        return storage + wide + (self.strategy.survey_bytes(self.spec()) if own_survey else 0)

    @property
    def survey_group(self) -> tuple[Any, ...] | None:
        """What it has alike with the tensors that share its survey; None where it has one of its own."""
        group = None if self.strategy is None else self.strategy.survey_group
        if group is None:
            return None
        return (
            *group,
            tuple(ref.model for ref in self.parents),
            None if self.base is None else self.base.model,
        )

    @property
    def is_surveyed(self) -> bool:
        """Whether its sources may be read more than once."""
        if isinstance(self.strategy, AbstractSpanStrategy) and is_fused(self.strategy):
            return self.strategy.needs_gram
        return self.strategy is not None and self.strategy.survey(self.spec()) is not None


def is_fused(strategy: AbstractStrategy) -> bool:
    """Whether blocks go from storage to storage through a block kernel, without wide copies."""
    if isinstance(strategy, AbstractKernelStrategy):
        return not strategy.makes_copies
    return isinstance(strategy, AbstractSpanStrategy) and strategy.per == "tensor"


@dataclass(frozen=True)
class Plan:
    """All output tensors in writing order, and what is left behind.

    Attributes:
        models: every model that tensors refer to.
        tensors: the output.
        donor: index of the model that gives config and tokenizer.
        dropped: (tensor name, model, reason) of every input tensor that has no part in it.
        untied: the output holds a head of its own although the donor's config ties it.
        stacks: those that have other layers than the donor's.
        notes: where the result differs from mergekit's on purpose.
        remarks: what else a recipe's author may not expect.
    """

    models: tuple[Source, ...]
    tensors: tuple[TensorPlan, ...]
    donor: int
    dropped: tuple[tuple[str, str, str], ...]
    untied: bool
    stacks: tuple[Stack, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def bytes_in(self) -> int:
        return sum(tensor.bytes_in for tensor in self.tensors)

    @property
    def bytes_out(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of the output."""
        return sum(tensor.count for tensor in self.tensors)

    @property
    def is_renamed(self) -> bool:
        """Whether tensors came from others of another name, weights that are tied apart."""
        refs = ((tensor.name, ref.info.name) for tensor in self.tensors for ref in tensor.sources())
        return bool(self.stacks) or any(name != own and not is_head(name) for name, own in refs)

    def worker_bytes(self) -> int:
        return max((tensor.worker_bytes() for tensor in self.tensors), default=0)

    def outputs(self) -> list[OutputTensor]:
        return [OutputTensor(t.name, t.dtype, t.shape) for t in self.tensors]

    def main_dtype(self) -> DType | None:
        """The floating dtype of most output elements."""
        counts: dict[str, int] = {}
        by_code = {t.dtype.code: t.dtype for t in self.tensors if t.dtype.is_float}
        for tensor in self.tensors:
            if tensor.dtype.is_float:
                counts[tensor.dtype.code] = counts.get(tensor.dtype.code, 0) + tensor.count
        return by_code[max(counts, key=lambda code: counts[code])] if counts else None


def make_plan(models: Sequence[Source], assembly: Assembly, out_dtype: DType | None = None) -> Plan:
    """Fits models and strategies together.

    Args:
        models: every model that the assembly refers to.
        assembly: which tensors make which.
        out_dtype: dtype of merged tensors; by default that of the sources, the widest where they differ.

    Raises:
        PlanError: a tensor is missing or has another shape somewhere, models do not fit each other or
            the strategy, there is nothing to merge, or the output would fit no model's config.
    """
    _check_configs(models)
    tensors = [_plan_tensor(assignment, models, out_dtype) for assignment in assembly.assignments]
    if not tensors:
        raise PlanError(f"{models[assembly.donor].label}: holds no tensors")
    output = [Made(tensor.name, tensor.shape, tensor.parents[0].model) for tensor in tensors]
    donor, fitted = fitting_donor(models, assembly.donor, output, {stack.prefix for stack in assembly.stacks})
    untied = any(is_head(t.name) and _is_untied(t, models, models[donor]) for t in tensors)
    remarks = [*assembly.remarks, *([fitted] if fitted else []), *_told(tensors), *_shared(tensors)]
    return Plan(
        tuple(models), tuple(tensors), donor, assembly.dropped, untied, assembly.stacks,
        remarks=tuple(remarks),
    )  # fmt: skip


def _told(tensors: Sequence[TensorPlan]) -> list[str]:
    """The strategies' own remarks."""
    strategies = {id(t.strategy): t.strategy for t in tensors if t.strategy is not None}
    return list(dict.fromkeys(s.remark for s in strategies.values() if s.remark))


def _shared(tensors: Sequence[TensorPlan]) -> list[str]:
    """A remark where parameters that differ by tensor divide what was to be measured over the whole model."""
    groups = {group for tensor in tensors if (group := tensor.survey_group) is not None}
    if len(groups) < 2:
        return []
    return [
        "scope: model measures together what has the same models and, of its parameters, the same that decide"
        f" the measure (such as density): {len(groups)} groups of tensors here"
    ]


def _is_untied(head: TensorPlan, models: Sequence[Source], donor: Source) -> bool:
    """Whether the output needs the head although the donor's config says that it is the embedding."""
    if head.name not in donor.tensors:
        return True
    tied = says_tied(donor.config, head.name) is True
    return tied and any(says_tied(models[r.model].config, head.name) is False for r in head.parents)


def _check_count(strategy: AbstractStrategy, count: int, has_base: bool) -> None:
    low, high = strategy.parents
    if count < low or (high is not None and count > high):
        wanted = f"{low} to {high} models"
        if low == high or high is None:
            wanted = f"{'exactly' if low == high else 'at least'} {counted(low, 'model')}"
        besides = " besides the base" if has_base else ""
        raise PlanError(f"{strategy.name} merges {wanted}, not {count}{besides}")
    if strategy.base_use is BaseModel.REQUIRED and not has_base:
        raise PlanError(
            f"{strategy.name} needs a base model: give one (base_model: in a recipe, --base, base=)"
        )


def _check_configs(models: Sequence[Source]) -> None:
    for model in models:
        check_not_quantised(model)
    kinds = [(m.label, m.config["architectures"]) for m in models if m.config.get("architectures")]
    for label, kind in kinds[1:]:
        if kind != kinds[0][1]:
            raise PlanError(
                f"architectures differ: {kinds[0][0]} is {_words(kinds[0][1])}, {label} is {_words(kind)};"
                " merge models of one architecture"
            )


def _words(value: Any) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _plan_tensor(assignment: Assignment, models: Sequence[Source], out_dtype: DType | None) -> TensorPlan:
    name, strategy = assignment.name, assignment.strategy
    if strategy is not None:
        _check_count(strategy, len(assignment.parents), assignment.base is not None)
    parents = tuple(_required(models, *place) for place in assignment.parents)
    unused = strategy is not None and strategy.base_use is BaseModel.UNUSED
    base = None if assignment.base is None or unused else _required(models, *assignment.base)
    refs = parents if base is None else (*parents, base)
    _check_shapes(name, models, refs)
    shape = parents[0].info.shape
    places = [*assignment.parents, *([] if base is None or not assignment.base else [assignment.base])]
    tied = [r.info.name for (m, n), r in zip(places, refs, strict=True) if n not in models[m].tensors]
    note = assignment.note or (f"read from {printable(min(tied))} where tied" if tied else "")
    if not _is_float(name, models, refs):
        codes = sorted({ref.info.dtype.code for ref in parents})
        if len(codes) > 1:
            raise PlanError(
                f"tensor '{printable(name)}' is {' and '.join(codes)}; whole numbers are not converted:"
                " save all models with one dtype"
            )
        note = "not floating point: must be equal in all models"
        return TensorPlan(name, shape, parents[0].info.dtype, "copy", None, parents, None, note)
    if strategy is None:
        return TensorPlan(
            name, shape, out_dtype or parents[0].info.own_dtype, "merge", _TAKE, parents, None, note
        )
    strategy.check(TensorSpec(printable(name), shape))
    dtype = out_dtype or widest([ref.info.own_dtype for ref in refs])
    return TensorPlan(name, shape, dtype, "merge", strategy, parents, base, note)


_TAKE = Linear().resolved(1)


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
