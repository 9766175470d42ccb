"""A task: what is read, by role; what is made of it; and by which kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.contract.case import Case, Inputs, TensorSpec
from merge_models.merge.contract.kernel import Grain, Kernel
from merge_models.merge.contract.strategy import AbstractStrategy

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block; part of the definition of every merge, since sums are folded block by block."""


@dataclass(frozen=True)
class Ref:
    """A tensor of one of the plan's models."""

    model: int
    info: TensorInfo


class Read(NamedTuple):
    """An input as blocks see it.

    Attributes:
        ref: the tensor.
        elements: how many it has.
        is_whole: whether every block sees all of them.
    """

    ref: Ref
    elements: int
    is_whole: bool


@dataclass(frozen=True)
class Task:
    """What makes one output tensor, or several, or (as a fit) only something to be known.

    Attributes:
        case: what the strategy was told of it.
        inputs: what is read, by role.
        kernel: what is done.
        strategy: what made the kernel; None where one model's tensor is copied.
        note: why it is copied, or read under another name; empty where there is nothing to say.
        is_taken: whether the recipe's ``only`` leaves it out of the merge: it is the donor's.
    """

    case: Case
    inputs: Inputs[Ref]
    kernel: Kernel
    strategy: AbstractStrategy | None
    note: str = ""
    is_taken: bool = False

    @cached_property
    def name(self) -> str:
        """The name that randomness, and messages, know it by; that of its output where there is one."""
        return self.case.name

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors that are made."""
        return self.kernel.outputs

    @property
    def parents(self) -> tuple[Ref, ...]:
        """The parents."""
        return self.inputs.parents

    @property
    def base(self) -> Ref | None:
        """The tensor in the base, where the strategy uses it."""
        return self.inputs.base

    @property
    def is_copied(self) -> bool:
        """Whether it is one model's tensor, no merge: at most its dtype changes."""
        return self.strategy is None or self.is_taken

    @property
    def action(self) -> str:
        """``merge``, or ``copy`` for what must be equal in all models."""
        return "copy" if self.strategy is None else "merge"

    @cached_property
    def domain(self) -> TensorSpec:
        """The tensor whose elements blocks are counted in: the first output, or of a fit the first input."""
        if self.outputs:
            return self.outputs[0]
        return next(iter(self.case.inputs))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the domain."""
        return self.domain.shape

    @property
    def dtype(self) -> DType:
        """The dtype of the domain."""
        return self.domain.dtype

    @cached_property
    def count(self) -> int:
        """Elements of the domain."""
        return self.domain.count

    @cached_property
    def reads(self) -> tuple[Read, ...]:
        """Every input in order. Kept, as it is asked for with every block."""
        whole = self.kernel.whole
        return tuple(Read(ref, ref.info.count, role in whole) for role, ref in self.inputs.by_role())

    @property
    def bytes_out(self) -> int:
        """Bytes of all outputs."""
        return sum(spec.nbytes for spec in self.outputs)

    @property
    def bytes_in(self) -> int:
        """Bytes of one reading of its inputs."""
        return sum(ref.info.nbytes for ref in self.inputs)

    def blocks(self) -> list[tuple[int, int]]:
        """Returns element ranges of the domain that are worked on alone; none for an empty tensor."""
        count, grain = self.count, self.kernel.grain
        step = BLOCK_ELEMENTS
        if grain is Grain.TENSOR:
            step = max(count, 1)
        elif grain is Grain.ROW:
            columns = max(self.domain.columns, 1)
            step = max(BLOCK_ELEMENTS // columns, self.kernel.least_rows, 1) * columns
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def part(self, elements: int, start: int, stop: int) -> tuple[int, int]:
        """Returns the part of a tensor of so many elements that belongs to a block of the domain."""
        count = self.count
        if elements == count:
            return start, stop
        return start * elements // count, stop * elements // count

    def worker_bytes(self) -> int:
        """Returns memory that a worker needs at most for a block: stored inputs and outputs, what the kernel
        takes, and a survey of its own."""
        start, stop = max(self.blocks(), key=lambda block: block[1] - block[0], default=(0, 0))
        if start == stop:
            return 0
        total = (stop - start) * self.kernel.bytes_per_element
        for ref, count, is_whole in self.reads:
            first, last = (0, count) if is_whole else self.part(count, start, stop)
            total += (last - first) * ref.info.dtype.size
        for spec in self.outputs:
            first, last = self.part(spec.count, start, stop)
            total += (last - first) * spec.dtype.size
        has_own_survey = self.kernel.survey is not None and self.kernel.shared is None
        return total + (self.kernel.survey_bytes(self.count) if has_own_survey else 0)

    @property
    def survey_group(self) -> tuple[Any, ...] | None:
        """What it has alike with the tasks that share its survey; None where it has one of its own."""
        if self.kernel.shared is None:
            return None
        models = tuple(ref.model for ref in self.parents)
        return *self.kernel.shared, models, None if self.base is None else self.base.model


@dataclass(frozen=True)
class Fit:
    """Something that must be known before any task runs, such as which units of a model match another's.

    Attributes:
        task: a task without outputs.
        receive: takes what its survey returns; a view of a model may wait for it.
    """

    task: Task
    receive: Callable[[Any], None]
