"""How many workers run, and torch's own threads while they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from merge_models.merge.errors import RecipeError, printable

MAX_THREADS = 1024


def default_threads() -> int:
    """Returns cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers(threads: Any) -> int:
    """Returns how many workers a caller asks for; one per core for None.

    Raises:
        RecipeError: it is no number of workers.
    """
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not hasattr(threads, "__index__") or not 1 <= threads <= MAX_THREADS:
        shown = printable(repr(threads), 80)
        raise RecipeError(
            f"threads is a whole number from 1 to {MAX_THREADS}, or None for one per core, not {shown}"
        )
    return int(threads)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Lets torch compute on one thread: workers are the parallelism, and torch's own threads would wait for
    them, and only split sums differently.

    The limit of the math library below torch is one of each thread: workers that are started within set their
    own.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def torch_workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Returns a pool of workers that compute on one torch thread each; the caller does too, while it is
    there."""
    import torch

    with one_torch_thread():
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
