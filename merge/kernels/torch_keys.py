"""What keys.py counts, in torch: where there are no compiled kernels, and for float64 storage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from merge_models.merge.contract.span import Span


def _wide(span: Span) -> Tensor:
    stored = span.tensor()
    return stored if stored.dtype == torch.float64 else stored.float()


def keys_of(source: Span, base: Span | None) -> Tensor:
    difference = _wide(source) if base is None else _wide(source) - _wide(base)
    return difference.abs().float().view(torch.int32)


def count_keys(
    sources: Sequence[Span], base: Span | None, firsts: Sequence[Sequence[int]], shift: int, bins: int
) -> np.ndarray:
    out = torch.zeros(len(sources), len(firsts[0]), bins, dtype=torch.int64)
    for number, source in enumerate(sources):
        keys = keys_of(source, base).long()
        for window, first in enumerate(firsts[number]):
            offsets = (keys - first) >> shift
            inside = offsets[(offsets >= 0) & (offsets < bins)]
            out[number, window] = torch.bincount(inside, minlength=bins)
    return out.numpy()


def gather_keys(
    sources: Sequence[Span], base: Span | None, windows: Sequence[Sequence[tuple[int, int]]], least: int
) -> tuple[list[list[tuple[np.ndarray, np.ndarray]]], np.ndarray, np.ndarray, np.ndarray]:
    inside = []
    above, within, positive = [], [], []
    for source, row in zip(sources, windows, strict=True):
        keys = keys_of(source, base)
        found = [keys[(keys > first - 1) & (keys <= stop - 1)] for first, stop in row]
        tallies = [k.unique(return_counts=True) for k in found]
        inside.append([(k.numpy(), number.int().numpy()) for k, number in tallies])
        within.append([len(k) for k in found])
        above.append([int((keys > stop - 1).sum()) for _, stop in row])
        positive.append(int((keys > least - 1).sum()))
    return inside, np.array(within), np.array(above), np.array(positive)


def count_shared(sources: Sequence[Span], base: Span, low: int) -> np.ndarray:
    changed = torch.stack([keys_of(source, base) > low for source in sources])
    alone = changed & (changed.sum(0) == 1)
    return torch.stack([changed.sum(1) - alone.sum(1), alone.sum(1)]).numpy()
