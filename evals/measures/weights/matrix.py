"""A weight matrix, or the difference of two, as an operator: held in float32, or read again for each use."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.measures.weights.blocks import PIECE, READ, read_flat, scratch, scratch_tensor
from merge_models.evals.measures.weights.family import Stored

HELD = 1 << 24
"""Elements up to which a matrix is held in memory (64 MiB in float32); larger ones are read for each use."""

TILE = 1 << 17
"""Elements of a tile of rows: half a megabyte, which stays in the cache while it is used twice."""


class Matrix:
    """``[rows, columns]`` of one tensor (less another), scaled to a root mean square near 1.

    The scale is a power of two, so it is exact, and float32 neither overflows nor underflows whatever the
    weights' size. Blocks of vectors are rows, ``[b, n]``: their products then run along the memory. One
    matrix at a time lives in a thread: it takes the thread's scratch memory.
    """

    def __init__(self, tensor: Stored, minus: Stored | None, norm: float) -> None:
        """``norm`` is the Frobenius norm of the matrix, positive and finite."""
        self.tensor, self.minus = tensor, minus
        shape = tensor.info.shape
        self.rows, self.columns = shape[0], tensor.info.count // shape[0]
        self.log2_scale = -round(math.log2(norm / math.sqrt(tensor.info.count)))
        self._held: Tensor | None = None

    @property
    def side(self) -> int:
        """The smaller side."""
        return min(self.rows, self.columns)

    @property
    def wide(self) -> bool:
        """Whether the smaller side is that of the rows."""
        return self.rows < self.columns

    def unscaled(self, value: float) -> float:
        """Returns a singular value of this matrix, as one of the tensor's."""
        return math.ldexp(value, -self.log2_scale)

    def dense(self) -> Tensor:
        """Returns all of it, scaled, in float64; for small ones."""
        return self._read(torch.float64)

    def apply(self, vectors: Tensor) -> Tensor:
        """Returns ``V W'``: [b, columns] -> [b, rows]."""
        return torch.cat([vectors @ tile.T for _, tile in self._tiles()], dim=1)

    def adjoint(self, vectors: Tensor) -> Tensor:
        """Returns ``V W``: [b, rows] -> [b, columns]."""
        out = torch.zeros(len(vectors), self.columns)
        for start, tile in self._tiles():
            out.addmm_(vectors[:, start : start + len(tile)], tile)
        return out

    def normal(self, vectors: Tensor) -> Tensor:
        """Returns ``V W'W``, or ``V W W'`` for a wide matrix: the Gram operator of the smaller side."""
        if self.wide:
            return self.apply(self.adjoint(vectors))
        out = torch.zeros(len(vectors), self.columns)
        for _, tile in self._tiles():
            out.addmm_(vectors @ tile.T, tile)
        return out

    def _tiles(self) -> Iterator[tuple[int, Tensor]]:
        """Runs of rows with the number of their first one, in float32."""
        height = max(1, TILE // self.columns)
        for first, block in self._blocks():
            for start in range(0, len(block), height):
                yield first + start, block[start : start + height]

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        if self.tensor.info.count <= HELD:
            if self._held is None:
                self._held = self._read(torch.float32)
            yield 0, self._held
            return
        rows = max(1, READ // self.columns)
        block = scratch_tensor("block", (rows, self.columns), torch.float32)
        buffers = self._buffers(rows * self.columns)
        for first in range(0, self.rows, rows):
            part = block[: min(rows, self.rows - first)]
            self._fill(part.view(-1), first * self.columns, buffers)
            yield first, part

    def _read(self, dtype: torch.dtype) -> Tensor:
        whole = scratch_tensor(f"matrix {dtype}", (self.rows, self.columns), dtype)
        flat = whole.view(-1)
        buffers = self._buffers(min(READ, len(flat)))
        for start in range(0, len(flat), READ):
            self._fill(flat[start : start + READ], start, buffers)
        return whole

    def _buffers(self, elements: int) -> list[np.ndarray]:
        return scratch([self.tensor, *([self.minus] if self.minus else [])], elements)

    def _fill(self, out: Tensor, start: int, buffers: list[np.ndarray]) -> None:
        """Elements from ``start`` on, scaled; differences are taken before anything is rounded."""
        stop = start + len(out)
        values = read_flat(self.tensor, start, stop, buffers[0])
        others = read_flat(self.minus, start, stop, buffers[1]) if self.minus else None
        dtype = torch.float64 if self._needs_double() else out.dtype
        scale = math.ldexp(1.0, self.log2_scale)
        spare = scratch_tensor("spare", (2, min(PIECE, len(out))), dtype)
        for at in range(0, len(out), PIECE):
            target = out[at : at + PIECE]
            piece = target if dtype == out.dtype else spare[0, : len(target)]
            piece.copy_(values[at : at + PIECE])
            if others is not None:
                piece -= spare[1, : len(target)].copy_(others[at : at + PIECE])
            piece *= scale
            if piece is not target:
                target.copy_(piece)

    def _needs_double(self) -> bool:
        """Whether float32 could not hold the values, their difference or the scale itself."""
        stored = [self.tensor, *([self.minus] if self.minus else [])]
        return abs(self.log2_scale) > 100 or any(one.info.dtype.size > 4 for one in stored)
