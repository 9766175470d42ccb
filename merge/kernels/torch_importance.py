"""What importance.py computes, in torch: where there are no compiled kernels, and for float64 storage.

The same steps as in importance.h and series.h, in the same order, so that results have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.kernels.blocks import is_finite

_FLOOR = 1e-8
_LANES, _STEPS = 8, 64
_EXPONENTIAL = [1 / math.factorial(k + 1) for k in range(13)]
_LOGARITHM = [1 / (2 * k + 1) for k in range(10)]
_EXCESS = [(-1) ** k / ((k + 1) * (k + 2)) for k in range(8)]


def divergences(parent: Span, base: Span, length: int) -> np.ndarray:
    p, b = (_runs(span, length) for span in (parent, base))
    change = p - b
    least, most = change.amin(1), change.amax(1)
    near = most - least <= 2.0**-5
    small = near & (b.amin(1) >= -0.25) & (b.amax(1) <= 0.25)
    middle, tops = 0.5 * least + 0.5 * most, p.amax(1) - b.amax(1)
    out = torch.empty(len(b), dtype=torch.float64)
    for chosen, shift, terms in ((small, middle, 10), (near & ~small, middle, 13), (~near, tops, 0)):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            out[rows] = _divergences(p[rows], b[rows], shift[rows, None], length, terms)
    return out.numpy()


def _runs(span: Span, length: int) -> Tensor:
    """Float64 ``[runs, length]``; the first element is repeated up to a multiple of eight."""
    runs = span.tensor().double().view(-1, length)
    return torch.cat([runs, runs[:, :1].expand(-1, -length % _LANES)], 1)


def _divergences(parent: Tensor, base: Tensor, shift: Tensor, length: int, terms: int) -> Tensor:
    """Those of runs of one kind: of small changes, with so many terms in the base's series; or (0) others."""
    top = base.amax(1, keepdim=True)
    level = top.where(top.abs() > 16, 0.0)
    weights = _far_weights if terms == 0 else _small_weights if terms == 10 else _near_weights
    own, more = (x[:, :length] for x in weights(parent, base, level, shift))
    whole = _total(own)
    k = _total(more) / whole
    if terms == 0:
        shift = shift.where(k.abs() <= 2.0**-6, shift + _logarithm(k))
        own, more = (x[:, :length] for x in weights(parent, base, level, shift))
        whole = _total(own)
        k = _total(more) / whole
    moved = (more - own * k) * (1 / (1 + k))
    own = own + _FLOOR * whole
    x = moved / own
    term = moved * (x * _series(x, _EXCESS))
    if terms == 0:
        term = term.where(x.abs() <= 2.0**-5, own * ((1 + x) * _logarithm(x) - x))
    return (_total(term) / whole)[:, 0]


Weights = tuple[Tensor, Tensor]
"""Of the base, and how much larger the parent's are."""


def _small_weights(parent: Tensor, base: Tensor, level: Tensor, shift: Tensor) -> Weights:
    change, base = (parent - base) - shift, base - level
    own = 1.0 + base * _series(base, _EXPONENTIAL[:10])
    return own, own * (change * _series(change, _EXPONENTIAL[:6]))


def _near_weights(parent: Tensor, base: Tensor, level: Tensor, shift: Tensor) -> Weights:
    change = (parent - base) - shift
    scale, rest = _exponential(base - level)
    own = scale + scale * rest
    return own, own * (change * _series(change, _EXPONENTIAL[:6]))


def _far_weights(parent: Tensor, base: Tensor, level: Tensor, shift: Tensor) -> Weights:
    change, base = (parent - base) - shift, base - level
    grows = change > 0
    scale, rest = _exponential(torch.where(grows, base + change, base))
    most = scale + scale * rest
    scale, rest = _exponential(torch.where(grows, -change, change))
    least, step = most * (scale + scale * rest), most * (scale * rest + (scale - 1))
    return torch.where(grows, least, most), torch.where(grows, -step, step)


def _total(x: Tensor) -> Tensor:
    """``[rows, 1]``: sums of eight lanes in each tile, folded in halves, tile after tile."""
    steps = min(_STEPS, -(-x.shape[1] // _LANES))
    tiles = pad(x, (0, -x.shape[1] % (steps * _LANES))).view(len(x), -1, steps, _LANES)
    lanes = _added(tiles.unbind(2))
    while lanes.shape[-1] > 1:
        first, second = lanes.chunk(2, -1)
        lanes = first + second
    return _added(lanes.unbind(1))


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part
    return total


def _series(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


def _exponential(t: Tensor) -> tuple[Tensor, Tensor]:
    """``scale, rest`` with ``exp(t) = scale (1 + rest)``."""
    t = torch.where(t < -708, -708.0, t)
    rounded = t * float.fromhex("0x1.71547652b82fep0") + 1.5 * 2.0**52
    k = rounded - 1.5 * 2.0**52
    t = (t - k * float.fromhex("0x1.62e42feep-1")) - k * float.fromhex("0x1.a39ef35793c76p-33")
    scale = (rounded.view(torch.int64) + 1023 << 52).view(torch.float64)
    return scale, t * _series(t, _EXPONENTIAL)


def _logarithm(x: Tensor) -> Tensor:
    """``log(1 + x)``."""
    bits = (1.0 + x).view(torch.int64)
    k = bits - 0x3FE6A09E667F3BCD >> 52
    over = torch.where(k == 0, x, (bits - (k << 52)).view(torch.float64) - 1.0)
    s = over / (2.0 + over)
    return (s + s) * _series(s * s, _LOGARITHM) + k.double() * math.log(2)


def importances(parent: Span, base: Span, divergence: np.ndarray, length: int) -> Tensor:
    change = (_wide(parent) - _wide(base)).abs_()
    own = torch.from_numpy(divergence).repeat_interleave(length)[: len(change)]
    return change.double().mul_(own).float()


def _wide(span: Span) -> Tensor:
    stored = span.tensor()
    return stored if stored.dtype == torch.float64 else stored.float()


def take_important(
    parent: Span, base: Span, divergence: np.ndarray, length: int, threshold: float, out: Span
) -> int:
    least = torch.tensor(threshold, dtype=torch.float64).float()
    taken = importances(parent, base, divergence, length) >= least
    out.tensor().copy_(torch.where(taken, _wide(parent), _wide(base)))
    if is_finite(parent) and is_finite(base):
        return 0 if is_finite(out) else OVERFLOW
    return NOT_FINITE
