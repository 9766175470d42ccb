"""Kernels of two plain kinds: by a block kernel from storage to storage, and by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel, Mixer, Output
from merge_models.merge.contract.span import UNEQUAL, Span
from merge_models.merge.kernels.blocks import NATIVE_TARGETS, NATIVE_TYPES

if TYPE_CHECKING:
    from torch import Tensor


def is_narrow(case: Case) -> bool:
    """Returns whether the compiled kernels know the dtypes of all inputs."""
    return all(spec.dtype.code in NATIVE_TYPES for spec in case.inputs)


def wide_bytes(case: Case) -> int:
    """Returns bytes an element of a block that is merged in torch: four float64 values for every input, and
    two more, at the worst."""
    return 8 * (4 * sum(1 for _ in case.inputs) + 2)


def mixing_kernel(
    case: Case, mixer: Callable[[Block, Any], Mixer], *, makes_copies: bool = True, **more: Any
) -> Kernel:
    """Makes a kernel of a block kernel that goes from storage bytes to storage bytes.

    Args:
        case: the task.
        mixer: what writes a block, given what the survey returned. It finds NaN and Inf itself.
        makes_copies: whether it, or what comes before it, takes memory of a block's size.
        **more: further fields of :class:`Kernel`.
    """
    return Kernel(
        partial(_fill, mixer),
        (case.result,),
        refuses_nonfinite=False,
        uses_torch=not (is_narrow(case) and case.dtype.code in NATIVE_TARGETS),
        # What is rounded by draws is float32 first.
        bytes_per_element=wide_bytes(case) if makes_copies else 4,
        **more,
    )


def _fill(mixer: Callable[[Block, Any], Mixer], block: Block, survey: Any, outputs: Sequence[Output]) -> int:
    return outputs[0].fill(mixer(block, survey))


def torch_kernel(case: Case, combine: Callable[[Block, Any], Tensor], **more: Any) -> Kernel:
    """Makes a kernel of a function that merges a block in torch.

    Args:
        case: the task.
        combine: from a block and what the survey returned to as many values, in float32 or wider.
        **more: further fields of :class:`Kernel`.
    """
    more.setdefault("outputs", (case.result,))
    return Kernel(partial(_take, combine), bytes_per_element=wide_bytes(case), **more)


def _take(
    combine: Callable[[Block, Any], Tensor], block: Block, survey: Any, outputs: Sequence[Output]
) -> int:
    return outputs[0].take(combine(block, survey))


def copy_kernel(case: Case) -> Kernel:
    """Makes a kernel that copies the first parent, and finds out where the others are not the same.

    A count of steps (``num_batches_tracked``) is the first model's, since no result depends on it.
    """
    compares = not case.name.endswith("num_batches_tracked")
    return Kernel(
        partial(_copy, compares), (case.result,), refuses_nonfinite=False, uses_torch=False,
        bytes_per_element=4,
    )  # fmt: skip


def _copy(compares: bool, block: Block, survey: Any, outputs: Sequence[Output]) -> int:
    del survey
    first, *others = block.spans
    equal = not compares or all(np.array_equal(first.data, other.data) for other in others)

    def copy(out: Span) -> int:
        out.data[:] = first.first(out.count).data
        return 0 if equal else UNEQUAL

    return outputs[0].fill(copy)
