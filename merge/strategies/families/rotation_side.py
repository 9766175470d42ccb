"""Which side of a matrix is rotated, and in how many blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge_models.merge.contract.case import Case
from merge_models.merge.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor


_BLOCK_ELEMENTS = 1 << 21
"""A block of rows has so many elements at least: its moments are as large as the rotated side squared."""


@dataclass(frozen=True)
class RotationSide:
    """How an ``[out, in]`` matrix is cut for rotations of its input side, or of its output side.

    Rotating the output side, ``R^T W``, is rotating the input side of the transposed matrix: ``(W^T R)^T``.

    Attributes:
        output: whether the output side is rotated.
        blocks, size: the rotation consists of so many blocks of this size.
    """

    output: bool
    blocks: int
    size: int

    @staticmethod
    def of(case: Case, side: str, block_size: int) -> RotationSide:
        """Returns the side of a matrix.

        Args:
            case: the task; its result is a matrix.
            side: ``input``, ``output`` or ``smaller`` (output where that is smaller).
            block_size: 0 for one block; a side shorter than a block is one block.

        Raises:
            PlanError: the block size does not divide the side.
        """
        rows, columns = case.shape
        output = side == "output" or (side == "smaller" and rows < columns)
        length = rows if output else columns
        size = min(block_size or length, length)
        if size and length % size:
            what = "output" if output else "input"
            raise PlanError(
                f"tensor '{case.shown_name}' {list(case.shape)}: block_size {block_size} does not divide"
                f" its {what} side of {length}; choose a divisor, or 0 to rotate it whole"
            )
        return RotationSide(output, length // max(size, 1), size)

    def least_rows(self, case: Case) -> int:
        """Returns the rows that a block of the matrix has at least; all, where the output side is rotated."""
        return case.rows if self.output else _BLOCK_ELEMENTS // max(case.columns, 1)

    @property
    def bytes(self) -> int:
        """Size of one float64 rotation."""
        return 8 * self.blocks * self.size**2

    def split(self, matrix: Tensor) -> Tensor:
        """Returns ``[blocks, n, size]``: the rotated side last, cut into blocks."""
        seen = matrix.mT if self.output else matrix
        return seen.unflatten(1, (self.blocks, self.size)).transpose(0, 1)

    def times(self, matrix: Tensor, right: Tensor) -> Tensor:
        """Returns the matrix with ``right [blocks, size, size]`` applied to its rotated side."""
        product = (self.split(matrix) @ right.to(matrix.dtype)).transpose(0, 1).flatten(1)
        return product.mT if self.output else product
