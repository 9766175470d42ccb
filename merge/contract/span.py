"""Runs of stored elements, and what can be wrong with them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE, BY_TORCH_NAME, DType
from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

NOT_FINITE = 1
"""Flag of a block: a source holds NaN or Inf."""

OVERFLOW = 2
"""Flag of a block: what was made of finite sources is not finite, or does not fit its dtype."""

UNEQUAL = 4
"""Flag of a block: sources that must be equal are not."""


@dataclass(frozen=True)
class Span:
    """A run of elements in storage form.

    Attributes:
        data: uint8 array, ``count * dtype.size`` bytes, contiguous.
        dtype: how to read it.
    """

    data: np.ndarray
    dtype: DType

    @staticmethod
    def of(tensor: Tensor) -> Span:
        """Returns a tensor's elements in order: its own memory where it is contiguous."""
        dtype = BY_TORCH_NAME[str(tensor.dtype).removeprefix("torch.")]
        return Span(tensor.contiguous().reshape(-1).view(torch.uint8).numpy(), dtype)

    @property
    def count(self) -> int:
        return self.data.nbytes // self.dtype.size

    def first(self, count: int) -> Span:
        """Returns the same memory's first elements."""
        nbytes = count * self.dtype.size
        return self if nbytes >= self.data.nbytes else Span(self.data[:nbytes], self.dtype)

    def tensor(self) -> Tensor:
        """Returns the same memory as a 1-D tensor."""
        dtype = getattr(torch, self.dtype.torch_name)
        return torch.from_numpy(self.data).view(dtype) if self.count else torch.empty(0, dtype=dtype)


def address_of(array: np.ndarray) -> int:
    """Returns where an array's bytes lie, for a compiled kernel.

    ``array.ctypes.data`` is the same, but takes four times as long, and it is asked for with every input of
    every block. It remains for memory that may only be read.
    """
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(cast("Any", array)))
    except (TypeError, ValueError, BufferError):
        return array.ctypes.data


def wide_span(sources: Sequence[Span]) -> Span:
    """Returns new memory for what is made of sources: float32 (float64 where one of them is float64)."""
    dtype = BY_CODE["F64" if any(span.dtype.code == "F64" for span in sources) else "F32"]
    return Span(np.empty(dtype.size * sources[0].count, np.uint8), dtype)
