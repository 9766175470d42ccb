"""One block of one output: rounded, sampled for what rounding leaves, and handed to the sink."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.case import TensorSpec
from merge_models.merge.contract.kernel import Mixer
from merge_models.merge.contract.span import OVERFLOW, Span
from merge_models.merge.errors import PlanError, printable
from merge_models.merge.kernels.blocks import is_finite
from merge_models.merge.kernels.rounding import round_into, survival
from merge_models.merge.kernels.terms import Key
from merge_models.merge.running.reading import Buffers
from merge_models.merge.running.survival import SAMPLED

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class BlockOutput:
    """A block's place in an output, as kernels see it (``contract.kernel.Output``).

    Attributes:
        spec: the whole tensor.
        start: the block's first element in it.
        span: the block's memory, in the output's dtype.
        buffers: the worker's memory, for values before they are rounded.
        key: of the draws that round it; None where it is rounded to nearest.
        reference: what changes are measured against where this block is sampled; None where it is not.
        keeps_nonfinite: whether NaN and Inf are let through.
        samples: what was measured: (elements, sums of ``kernels.rounding.survival``).
        is_filled: whether the kernel has written it.
    """

    spec: TensorSpec
    start: int
    span: Span
    buffers: Buffers
    key: Key | None = None
    reference: Span | None = None
    keeps_nonfinite: bool = False
    samples: list[tuple[int, np.ndarray]] = field(default_factory=list)
    is_filled: bool = False

    @property
    def count(self) -> int:
        """Elements of the block."""
        return self.span.count

    def fill(self, mixer: Mixer) -> int:
        """Lets a block kernel write, from storage to storage at once."""
        self._begin()
        if self.key is None:
            flags = mixer(self.span)
        else:
            wide = Span(self.buffers.get("wide", 4 * self.count)[: 4 * self.count], BY_CODE["F32"])
            flags = mixer(wide)
            flags |= round_into(wide.data.view(np.float32), self.span, self.key)
        if self.reference is not None:
            wide = Span(np.empty(4 * min(SAMPLED, self.count), np.uint8), BY_CODE["F32"])
            mixer(wide)
            self._sample(wide.data.view(np.float32), self.reference)
        return flags

    def take(self, values: Tensor) -> int:
        """Rounds torch's values."""
        self._begin()
        flat = values.reshape(-1)
        if len(flat) != self.count:
            raise PlanError(
                f"made {len(flat)} values for a block of {self.count} of '{printable(self.spec.name)}';"
                " a kernel makes as many as the block of its output has"
            )
        if self.key is None:
            self.span.tensor().copy_(flat)
        else:
            round_into(flat.float().contiguous().numpy(), self.span, self.key)
        if self.reference is not None:
            self._sample(flat[:SAMPLED].float().numpy(), self.reference)
        return 0 if self.keeps_nonfinite or is_finite(self.span) else OVERFLOW

    def _begin(self) -> None:
        if self.is_filled:
            raise PlanError(f"filled '{printable(self.spec.name)}' twice; fill each output once a block")
        self.is_filled = True

    def _sample(self, values: np.ndarray, reference: Span) -> None:
        """Notes what rounding leaves of changes, for the block's first values before they were rounded."""
        first = self.span.first(SAMPLED), reference.first(SAMPLED)
        self.samples.append((values.size, survival(values, *first)))
