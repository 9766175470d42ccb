"""Blocks kept in memory between a tensor's survey and its combining, within a budget.

What fits is read from the files once, not once a round; buffers are reused, since fresh memory costs more
than the reading that it saves.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

HOLD_BYTES = 256 << 20
"""Bytes of sources that may be held at a time; blocks beyond them are read again in every round."""


class HeldBlocks:
    """Lends buffers to blocks that fit the budget; safe to use from any thread.

    Buffers lent and buffers kept for reuse together never pass the budget.
    """

    def __init__(self, budget: int = HOLD_BYTES) -> None:
        self._budget = self._left = budget
        self._made = 0
        self._free: dict[int, list[np.ndarray]] = {}
        self._lock = threading.Lock()

    def lend(self, sizes: Sequence[int]) -> list[np.ndarray] | None:
        """Returns uint8 buffers for a block, of these sizes; None where the budget has no room for all."""
        total = sum(sizes)
        with self._lock:
            if total > self._left:
                return None
            self._left -= total
            known = [self._take(nbytes) for nbytes in sizes]
        pairs = zip(known, sizes, strict=True)
        return [np.empty(size, np.uint8) if buffer is None else buffer for buffer, size in pairs]

    def _take(self, nbytes: int) -> np.ndarray | None:
        """A buffer that is free; None where one has to be made, for which room is made."""
        free = self._free.get(nbytes)
        if free:
            return free.pop()
        while self._made + nbytes > self._budget and self._drop_one():
            pass
        self._made += nbytes
        return None

    def _drop_one(self) -> bool:
        """Lets go of a buffer that nobody uses, where there is one."""
        size = max((size for size, buffers in self._free.items() if buffers), default=0)
        if size:
            self._free[size].pop()
            self._made -= size
        return bool(size)

    def give_back(self, buffers: list[np.ndarray]) -> None:
        """Takes buffers back; their bytes may be set aside again."""
        with self._lock:
            for buffer in buffers:
                self._free.setdefault(buffer.nbytes, []).append(buffer)
                self._left += buffer.nbytes
