"""How many workers run, and torch's own threads while they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


def default_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Workers are the parallelism; torch's own threads would wait for them, and only split sums differently.

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
    """A pool of workers that compute on one torch thread each; the caller does too, while it is there."""
    import torch

    with one_torch_thread():
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
