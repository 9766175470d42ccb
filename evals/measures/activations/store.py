"""Activations of a sample of tokens, in a temporary file: memory stays free for the models."""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from merge_models.merge.errors import MergeError


@dataclass(frozen=True)
class Region:
    """A matrix in the file: [rows, columns] of ``dtype`` from byte ``offset`` on."""

    offset: int
    rows: int
    columns: int
    dtype: str = "float32"

    @property
    def row_bytes(self) -> int:
        return self.columns * np.dtype(self.dtype).itemsize


class Store:
    """A temporary file of matrices; it is removed with the object, at the latest."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="merge-models-")
        self._end = 0
        self.close = weakref.finalize(self, self._file.close)

    def allocate(self, rows: int, columns: int, dtype: str = "float32") -> Region:
        """Returns room for a matrix in the file."""
        region = Region(self._end, rows, columns, dtype)
        self._end += rows * region.row_bytes
        return region

    def write(self, region: Region, row: int, data: np.ndarray) -> None:
        """Puts rows of a matrix, from ``row`` on.

        Raises:
            MergeError: the disk is full.
        """
        view = memoryview(cast("Any", np.ascontiguousarray(data, region.dtype))).cast("B")
        position, done = region.offset + row * region.row_bytes, 0
        while done < len(view):
            try:
                done += os.pwrite(self._file.fileno(), view[done:], position + done)
            except OSError as error:
                raise MergeError(
                    f"{tempfile.gettempdir()}: activations cannot be kept there: {error.strerror}; make room,"
                    " or set TMPDIR to another disk"
                ) from None

    def read(self, region: Region, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns rows ``start`` to ``stop`` of a matrix."""
        rows = (region.rows if stop is None else stop) - start
        data = np.empty((rows, region.columns), region.dtype)
        view, done = memoryview(cast("Any", data)).cast("B"), 0
        position = region.offset + start * region.row_bytes
        while done < len(view):
            got = os.preadv(self._file.fileno(), [view[done:]], position + done)
            if got == 0:
                raise MergeError("activations that were kept in a temporary file are gone; run it again")
            done += got
        return data
