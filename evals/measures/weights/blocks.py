"""Tensors from storage to float64, a block at a time; converted in pieces that stay in the cache."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.measures.weights.family import Stored

READ = 1 << 20
"""Elements of one read."""

PIECE = 1 << 15
"""Elements of one piece: a row of five models in float64 is 1.3 MB."""


def read_flat(stored: Stored, start: int, stop: int, buffer: np.ndarray) -> Tensor:
    """Returns elements ``start`` to ``stop`` in their storage dtype, in ``buffer`` or where they are."""
    size = stored.info.dtype.size
    raw = stored.source.read(stored.info, start * size, stop * size, buffer)
    dtype = getattr(torch, stored.info.dtype.torch_name)
    return torch.from_numpy(raw).view(dtype) if raw.size else torch.empty(0, dtype=dtype)


_room = threading.local()


def room(use: str, nbytes: int) -> np.ndarray:
    """Returns a worker's memory for one use, grown to the largest ever asked for and gone with its thread.

    Fresh memory would cost a page fault for every 4 KiB, which takes longer than what is done with them.
    """
    array = getattr(_room, use, None)
    if array is None or array.nbytes < nbytes:
        array = np.empty(nbytes, np.uint8)
        setattr(_room, use, array)
    return array[:nbytes]


def scratch(stored: Sequence[Stored], elements: int) -> list[np.ndarray]:
    """Returns a buffer for each model that holds so many of its elements."""
    return [room(f"read{i}", elements * one.info.dtype.size) for i, one in enumerate(stored)]


def scratch_tensor(use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns memory as a tensor of any values; valid until the same use asks again."""
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(room(use, nbytes)).view(dtype).view(shape)


def pieces(stored: Sequence[Stored], count: int) -> Iterator[Tensor]:
    """Returns all elements of several models' tensors as float64 ``[models, piece]``; the memory is
    reused."""
    buffers = scratch(stored, min(count, READ))
    wide = scratch_tensor("pieces", (len(stored), min(count, PIECE)), torch.float64)
    for start in range(0, count, READ):
        stop = min(start + READ, count)
        flat = [read_flat(one, start, stop, buffer) for one, buffer in zip(stored, buffers, strict=True)]
        for at in range(0, stop - start, PIECE):
            width = min(PIECE, stop - start - at)
            piece = wide[:, :width]
            for row, values in zip(piece, flat, strict=True):
                row.copy_(values[at : at + width])
            yield piece
