"""What the loop knows of a merge: how a task's blocks are surveyed and written, and at what cost."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import TensorSpec
from merge_models.merge.contract.span import Span

if TYPE_CHECKING:
    from torch import Tensor


class Grain(enum.Enum):
    """What a block must not split.

    Under ``ELEMENT`` all inputs and outputs of a block have as many elements; under ``ROW`` as many rows,
    of any lengths; under ``TENSOR`` there is one block, and shapes need not fit each other.
    """

    ELEMENT = "element"
    ROW = "row"
    TENSOR = "tensor"


Moments = tuple[Any, ...]
"""Tensors, arrays, or whatever else ``+=`` adds up."""

Figures = dict[str, float | int | bool | str]
"""What is worth telling about a tensor that was made, for the summary and the manifest."""


@dataclass(frozen=True)
class Pass:
    """One round of a survey: ``function`` is called on every block, and its results are added.

    The loop adds them in block order, so the total does not depend on threads. Function and arguments are
    sent to other processes by engines that have some, so neither may be a closure; equal passes over the
    same inputs give equal totals, and need one reading only.

    Attributes:
        function: called with a block and ``arguments``; returns a tuple of float64 or int64 tensors or
            arrays, of fixed shapes.
        arguments: plain values.
        every: if given, a block is a sample, one element in so many, in short runs (samples.py); it may be
            empty, and ``function`` may keep it.
    """

    function: Callable[..., Moments]
    arguments: tuple[Any, ...] = ()
    every: int | None = None

    def measure(self, block: Block) -> Moments:
        """Returns a block's part of the round."""
        return self.function(block, *self.arguments)


Survey = Generator[Pass, Moments, Any]
"""Yields passes, is sent each pass's total, and returns what ``write`` gets."""

Mixer = Callable[[Span], int]
"""Writes a block's first elements, as many as the span holds, into it.

Returns ``NOT_FINITE`` where a source is NaN or Inf, ``OVERFLOW`` where only what is written is, else 0.
"""


class Output(Protocol):
    """Where one block of one output goes. Each is filled once, in one of the two ways.

    Whoever fills it knows nothing of storage dtypes, kinds of rounding, or what is sampled.
    """

    @property
    def spec(self) -> TensorSpec:
        """The whole tensor."""
        ...

    @property
    def count(self) -> int:
        """Elements of this block of it."""
        ...

    def fill(self, mixer: Mixer) -> int:
        """Lets a block kernel write into the memory of the output, and returns its flags.

        ``mixer`` may be called more than once, with spans of other dtypes and of fewer elements.
        """
        ...

    def take(self, values: Tensor) -> int:
        """Rounds torch's values (float32 or wider, ``count`` of them in any shape), and returns flags.

        Raises:
            PlanError: there are more or fewer values.
        """
        ...


Write = Callable[[Block, Any, Sequence[Output]], int]
"""Writes a block: given it, what the survey returned, and one output for each of the kernel's ``outputs``.

Returns flags as a :data:`Mixer` does.
"""


def no_figures(survey: Any) -> Figures:
    """Returns what is worth telling where nothing is."""
    del survey
    return {}


def no_bytes(elements: int) -> int:
    """Returns the memory of a survey that keeps next to nothing."""
    del elements
    return 0


@dataclass(frozen=True)
class Kernel:
    """What the loop must know to carry out one task, and nothing else.

    Attributes:
        write: writes a block; None for a fit, which has no outputs.
        outputs: what is made.
        grain: what a block must not split.
        least_rows: rows that a block has at least under ``Grain.ROW``: for surveys whose results are larger
            than a usual block.
        whole: roles of which every block sees all; inputs of other roles are cut as the outputs are.
        survey: from the number of elements that it covers (those of the task, or of all tasks that share it)
            to its rounds; None where nothing is to be known before the first block is written.
        shared: all that a survey of several tasks depends on: tasks of the same models that have it alike
            share one. None: each task has its own.
        figures: what is worth telling, given what the survey returned.
        refuses_nonfinite: whether the loop stops at NaN and Inf in a block before ``write`` sees it; false
            where ``write`` finds them itself and says so by its flags.
        uses_torch: whether torch computes anything of size.
        bytes_per_element: memory that a worker takes for each element of a block, beside stored inputs and
            outputs.
        survey_bytes: memory that a survey of so many elements takes beyond its blocks.
        warm_up: loads what the kernel will use, so that it counts as the program's own memory.
        note: what a plan tells of the tensor; empty where there is nothing to say.
    """

    write: Write | None
    outputs: tuple[TensorSpec, ...]
    grain: Grain = Grain.ELEMENT
    least_rows: int = 1
    whole: frozenset[str] = frozenset()
    survey: Callable[[int], Survey] | None = None
    shared: tuple[Any, ...] | None = None
    figures: Callable[[Any], Figures] = no_figures
    refuses_nonfinite: bool = True
    uses_torch: bool = True
    bytes_per_element: int = 0
    survey_bytes: Callable[[int], int] = no_bytes
    warm_up: Callable[[], None] | None = None
    note: str = ""
