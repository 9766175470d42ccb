"""What competition.py computes, in torch: where there are no compiled kernels, and for float64 storage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.kernels.blocks import is_finite

Range = tuple[float, float]


def scores(sources: Sequence[Span], base: Span, sizes: Sequence[Range]) -> list[Span]:
    deltas = _deltas(sources, base)
    return [Span.of(score) for score in _scores(deltas, sizes)]


def compete_into(
    sources: Sequence[Span],
    base: Span,
    sizes: Sequence[Range],
    marks: Sequence[Range],
    weights: Sequence[float],
    scale: float,
    out: Span,
) -> int:
    deltas = _deltas(sources, base)
    total = torch.zeros(base.count, dtype=torch.float64)
    shares = torch.zeros_like(total)
    of_each = zip(deltas, _scores(deltas, sizes), sizes, marks, weights, strict=True)
    for delta, score, (low, high), (least, most), weight in of_each:
        flat = 0.0 if most > least else 1.0
        share = (score - least) * (0.0 if flat else _over(most, least, score.dtype)) + flat
        share = share.where((score >= least) & (score > 0), 0.0)
        size = delta.abs().clamp(low, high)
        total += size.copysign(delta).double().mul_(share).mul_(weight)
        shares += share
    mean = total.mul_(scale).div_(shares.where(shares > 0, 1.0)).add_(base.tensor().double())
    out.tensor().copy_(mean if out.dtype.code == "F64" else mean.float())
    if all(is_finite(span) for span in (*sources, base)):
        return 0 if is_finite(out) else OVERFLOW
    return NOT_FINITE


def _deltas(sources: Sequence[Span], base: Span) -> list[Tensor]:
    tensors = [span.tensor() for span in (*sources, base)]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    *parents, origin = (t.to(dtype) for t in tensors)
    return [parent - origin for parent in parents]


def _scores(deltas: Sequence[Tensor], sizes: Sequence[Range]) -> list[Tensor]:
    whole = torch.stack([delta.double() for delta in deltas]).sum(0).to(deltas[0].dtype)
    parts = []
    for delta, (low, high) in zip(deltas, sizes, strict=True):
        size = (delta.abs().clamp(low, high) - low) * (_over(high, low, delta.dtype) if high > low else 1.0)
        falls = (size * size - 1.0) * float(len(deltas))
        score = _tanh_of_positive(delta * whole) * _exp_of_negative(falls)
        parts.append(score.float())  # as keys are: a threshold is one of them
    return parts


def _over(high: float, low: float, dtype: torch.dtype) -> Tensor:
    """One over their difference."""
    return 1.0 / (torch.tensor(high, dtype=dtype) - torch.tensor(low, dtype=dtype))


def _float(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float32)


def _series(r: Tensor) -> Tensor:
    p = torch.full_like(r, 1.0 / 5040)
    for factor in (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5):
        p = p * r + _float(factor)
    return p * r


def _power(x: Tensor) -> tuple[Tensor, Tensor]:
    times = (x * _float(1.44269504) + 12582912.0) - 12582912.0
    rest = x - times * 0.693359375
    rest = rest - times * _float(-2.12194440e-4)
    return ((times.int() + 127) << 23).view(torch.float32), rest


def _exp_of_negative(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        return x.exp()
    scale, r = _power(x.clamp(min=-87.0))
    return ((_series(r) * r + r + 1.0) * scale).where(x > -87.0, 0.0)


def _tanh_of_positive(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        return x.clamp(min=0.0).tanh()
    scale, r = _power((x + x).where(x > 0, 0.0).clamp(max=30.0))
    e = (_series(r) * r + r) * scale + (scale - 1.0)
    little = x.where(x > 0, 0.0)
    square = little * little
    series = ((square * _float(2.0 / 15) - _float(1.0 / 3)) * square) * little + little
    return series.where(x < 0.03125, e / (e + 2.0))
