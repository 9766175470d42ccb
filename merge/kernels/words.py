"""The random words behind all draws: a keyed bijection of 0, 1, 2, ..., as the compiled kernels have it."""

from __future__ import annotations

import numpy as np

from merge_models.merge.kernels.terms import Key

_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1))
"""Chris Wellons' triple32 (public domain); words of the key are added between its rounds."""


def words(count: int, key: Key) -> np.ndarray:
    """Returns uint32 ``[count]``: the first so many words under a key."""
    counters = np.arange(count, dtype=np.uint32) + np.uint32(key[0])
    for (shift, multiplier), add in zip(_ROUNDS, (key[1], key[2], 0, 0), strict=True):
        counters ^= counters >> np.uint32(shift)
        counters *= np.uint32(multiplier)
        counters += np.uint32(add)
    return counters
