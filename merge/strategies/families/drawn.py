"""Parts of models taken as they are, and what tells models apart whatever they are called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.blocks import weighted_sum
from merge_models.merge.kernels.task_vectors import checksum


def copy(source: Span, out: Span) -> None:
    """Writes a source's elements in the dtype of ``out``."""
    if source.dtype == out.dtype:
        out.data[:] = source.data
    else:
        weighted_sum([source], [1.0], out)


def copy_rows(sources: Sequence[Span], drawn: np.ndarray, columns: int, out: Span) -> None:
    """Writes each row, of so many elements, from the source drawn for it; the last may be cut short."""
    element = np.dtype(f"u{out.dtype.size}")
    copied = Span(np.empty_like(out.data), out.dtype)
    for number, source in enumerate(sources):
        copy(source, copied)
        taken = np.repeat(drawn == number, columns)[: out.count]
        np.copyto(out.data.view(element), copied.data.view(element), where=taken)


def checksums(block: Block) -> Moments:
    """Returns int64 ``[N, 2]`` sums, which wrap around, of what each parent holds."""
    place = 2 * block.number + 1
    sums = [[a, b * place] for a, b in map(checksum, block.spans)]
    return (np.array([[_wrapped(word) for word in pair] for pair in sums], dtype=np.int64),)


def _wrapped(word: int) -> int:
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)
