"""Keys of differences from a base: how many there are of which size.

A difference's *key* is the bit pattern of its magnitude in float32, which sorts as the magnitude does.
Compiled where possible; the torch versions give the same, and serve float64 storage.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from merge_models.merge.contract.span import Span, address_of
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.compiled import WORD, addresses, place

Windows = Sequence[Sequence[tuple[int, int]]]
"""For each source, windows ``(first, stop)``: keys from ``first`` to ``stop - 1``."""

Tally = tuple[np.ndarray, np.ndarray]
"""Keys, int32, and how many of each, int32; the same key may stand in several places."""

_MORE = (1 << 10) + 2
"""A window's entries beyond one for each element: those of the kernel's table, and the window's ends."""


def keys_of(source: Span, base: Span | None) -> np.ndarray:
    """Returns int32 keys of ``source - base`` (of ``source`` where there is no base)."""
    library = compiled.library_for(source, base)
    if library is None:
        from merge_models.merge.kernels import torch_keys

        return torch_keys.keys_of(source, base).numpy()
    out = np.empty(source.count, np.int32)
    library.merge_models_keys(*place(source), *place(base), source.count, address_of(out))
    return out


def count_keys(
    sources: Sequence[Span], base: Span | None, firsts: Sequence[Sequence[int]], shift: int, bins: int
) -> np.ndarray:
    """Returns histograms of the keys of each source's difference from the base (of the source, without one).

    Args:
        sources: N sources.
        base: the base, or None.
        firsts: for each source, where each of its W windows begins.
        shift: log2 of the keys in a bin.
        bins: bins of a window.

    Returns:
        int64 ``[N, W, bins]``: how many keys ``k`` have ``(k - first) >> shift`` equal to the bin.
    """
    library = compiled.library_for(*sources, base)
    if library is None:
        from merge_models.merge.kernels import torch_keys

        return torch_keys.count_keys(sources, base, firsts, shift, bins)
    windows = len(firsts[0])
    out = np.zeros((len(sources), windows, bins), np.int64)
    flat = [first for row in firsts for first in row]
    compiled.check(
        library.merge_models_count_keys(
            *compiled.sources(sources), *place(base), sources[0].count, windows,
            (WORD * len(flat))(*flat), shift, bins, address_of(out),
        )
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Gathered:
    """Keys inside windows, and how many lie elsewhere, for N sources with W windows each.

    Attributes:
        inside: for each source and window, its keys.
        within: int64 ``[N, W]``, how many they are.
        above: int64 ``[N, W]``, how many keys lie beyond the window.
        positive: int64 ``[N]``, how many keys are ``least`` or more.
    """

    inside: list[list[Tally]]
    within: np.ndarray
    above: np.ndarray
    positive: np.ndarray


def gather_keys(sources: Sequence[Span], base: Span | None, windows: Windows, least: int) -> Gathered:
    """Returns keys of each source's difference from the base (of the source, without one) that lie in
    windows.

    Args:
        sources: N sources.
        base: the base, or None.
        windows: W windows for each source.
        least: from which key on :attr:`Gathered.positive` counts.
    """
    library = compiled.library_for(*sources, base)
    if library is None:
        from merge_models.merge.kernels import torch_keys

        return Gathered(*torch_keys.gather_keys(sources, base, windows, least))
    shape, count = (len(sources), len(windows[0])), sources[0].count
    positive, above, within, entries = (np.zeros(n, np.int64) for n in (shape[:1], *[shape] * 3))
    edges = [window for row in windows for window in row]
    words = WORD * len(edges)
    keys, times = _room(len(edges), count + _MORE)
    compiled.check(
        library.merge_models_gather_keys(
            *compiled.sources(sources), *place(base), count, shape[1], words(*[a for a, _ in edges]),
            words(*[b for _, b in edges]), least, addresses(keys), addresses(times),
            addresses([positive, above, within, entries]),
        )
    )  # fmt: skip
    numbers = entries.reshape(-1).tolist()
    flat = [(k[:n].copy(), t[:n].copy()) for k, t, n in zip(keys, times, numbers, strict=True)]
    inside = [flat[at : at + shape[1]] for at in range(0, len(flat), shape[1])]
    return Gathered(inside, within, above, positive)


_kept = threading.local()


def _room(number: int, count: int) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
    """A thread's own scratch memory, kept for its next block: fresh memory costs more than its use."""
    room: np.ndarray | None = getattr(_kept, "room", None)
    if room is None or room.shape[1] < number or room.shape[2] < count:
        room = _kept.room = np.empty((2, number, count), np.int32)
    return list(room[0, :number]), list(room[1, :number])


def count_shared(sources: Sequence[Span], base: Span, low: int) -> np.ndarray:
    """Returns how many keys of each source lie above ``low``: int64 ``[2, N]``, shared and alone."""
    library = compiled.library_for(*sources, base)
    if library is None:
        from merge_models.merge.kernels import torch_keys

        return torch_keys.count_shared(sources, base, low)
    out = np.zeros((2, len(sources)), np.int64)
    compiled.check(
        library.merge_models_count_shared(
            *compiled.sources(sources), *place(base), base.count, ctypes.c_uint32(low), address_of(out)
        )
    )
    return out
