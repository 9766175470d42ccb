"""A part of one task's inputs, as a kernel sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_TORCH_NAME
from merge_models.merge.contract.case import Case, Inputs, TensorSpec
from merge_models.merge.contract.span import Span
from merge_models.merge.errors import PlanError
from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class Block:
    """A part of every input of a task.

    Attributes:
        inputs: elements as they are stored, to be read only; whole for the roles that the kernel asks for
            whole, else those of this block.
        start: index of the block's first element in the flattened result.
        case: the task.
        number: the block's place among those that share its survey.
        columns: elements of a row, where blocks are whole rows (a 1-D tensor is one row); None where they
            are any run of elements.
        places: of a sample, int64, where its runs of ``samples.RUN`` elements begin in the flattened result.
    """

    inputs: Inputs[Span]
    start: int
    case: Case
    number: int = 0
    columns: int | None = None
    places: np.ndarray | None = None

    @staticmethod
    def of(stored: Sequence[Tensor], base: Tensor | None = None, start: int = 0, name: str = "w") -> Block:
        """Returns a block that is all of a tensor, from torch's tensors: flat, or ``[rows, columns]``."""

        def spec(tensor: Tensor) -> TensorSpec:
            dtype = BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
            return TensorSpec(name, tuple(tensor.shape), dtype)

        tensors = Inputs(tuple(stored), base)
        columns = stored[0].shape[-1] if stored[0].ndim > 1 else None
        case = Case(name, tensors.map(spec), spec(stored[0]).dtype)
        return Block(tensors.map(Span.of), start, case, columns=columns)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The parents' elements, one span each."""
        return self.inputs.parents

    @property
    def base_span(self) -> Span | None:
        """The same part of the base model, or None."""
        return self.inputs.base

    @property
    def origin(self) -> Span:
        """The same part of the base model, for kernels that cannot do without one.

        Raises:
            PlanError: the task has no base.
        """
        if self.inputs.base is None:
            raise PlanError(f"tensor '{self.case.shown_name}': no base model to take differences from")
        return self.inputs.base

    def with_inputs(self, parents: Sequence[Span], base: Span | None) -> Block:
        """Returns the block with other parents and another base."""
        return replace(self, inputs=replace(self.inputs, parents=tuple(parents), base=base))

    @cached_property
    def tensors(self) -> Inputs[Tensor]:
        """All inputs as torch's tensors, in the memory of the spans.

        They are ``[count]``, or ``[rows, columns]`` where blocks are whole rows.
        """
        specs = iter(self.case.inputs.map(lambda spec: spec.columns))
        if self.columns is None:
            return self.inputs.map(Span.tensor)
        return self.inputs.map(lambda span: span.tensor().view(-1, next(specs)))

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """The parents as torch's tensors, as they are stored."""
        return self.tensors.parents

    @property
    def stored_base(self) -> Tensor | None:
        """The base likewise, or None."""
        return self.tensors.base

    @cached_property
    def parents(self) -> tuple[Tensor, ...]:
        """Private copies of the parents in float32 (float64 for float64 storage)."""
        return tuple(_widened(stored) for stored in self.stored)

    @cached_property
    def base(self) -> Tensor | None:
        """A private copy of the base, like the parents'."""
        return None if self.stored_base is None else _widened(self.stored_base)


def _widened(stored: Tensor) -> Tensor:
    return stored.to(torch.float64 if stored.dtype == torch.float64 else torch.float32, copy=True)
