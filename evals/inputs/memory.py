"""Freed memory, given back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def release() -> None:
    """Returns freed memory to the system, where the C library is glibc.

    glibc keeps it for later, in pieces that torch's aligned allocations then do not fit into: a process that
    loads and runs models one after the other grows by a model each time.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return lambda _: None
