"""What task_vectors.py computes, in torch: where there are no compiled kernels, and for float64 storage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.kernels.blocks import is_finite
from merge_models.merge.kernels.terms import Key, Mixing, Ranked, Rule, Thinned, limit_of
from merge_models.merge.kernels.torch_keys import keys_of
from merge_models.merge.kernels.words import words


def mix_into(
    sources: Sequence[Span],
    base: Span,
    thinned: Sequence[Thinned],
    mixing: Mixing,
    factors: Sequence[float],
    shares: Sequence[float],
    extra: Sequence[float],
    out: Span,
) -> int:
    weights = [
        _left(source, base, part, sources).mul_(factor)
        for source, part, factor in zip(sources, thinned, factors, strict=True)
    ]
    stored = [_restrained(source, base, part) for source, part in zip(sources, thinned, strict=True)]
    out.tensor().copy_(_mixed(stored, base.tensor(), weights, mixing, shares, extra))
    if all(is_finite(span) for span in (*sources, base)):
        return 0 if is_finite(out) else OVERFLOW
    return NOT_FINITE


def _mixed(
    stored: Sequence[Tensor],
    base: Tensor,
    weights: Sequence[Tensor],
    mixing: Mixing,
    shares: Sequence[float],
    extra: Sequence[float],
) -> Tensor:
    """The kernel's arithmetic, step by step."""
    wide = base.double()
    values = [x.double() for x in stored]
    terms = [(x - wide) * w for x, w in zip(values, weights, strict=True)]
    parts, gains = _participants(terms, weights, mixing, extra)
    total, share, whole, coefficient = (torch.zeros_like(wide) for _ in range(4))
    least, most = torch.full_like(wide, math.inf), torch.full_like(wide, -math.inf)
    for x, weight, term, part, gain, own in zip(values, weights, terms, parts, gains, shares, strict=True):
        total += (term * gain) * part
        coefficient += (weight * gain) * part
        share += part.double() * own
        whole += part.double() * abs(own)
        least = x.where(part & (x < least), least)
        most = x.where(part & (x > most), most)
    divisor = share.where((share.abs() > 1e-12 * whole) & mixing.normalize, 1.0)
    quotient = torch.full_like(divisor, mixing.scale) / divisor  # a true division, unlike scale / divisor
    one = ((coefficient * quotient - 1.0).abs() <= 1e-13) & (least == most)
    mixed = wide.where(total == 0, wide + total * quotient)
    merged = least.where(one, mixed)
    exact = any(t.dtype == torch.float64 for t in (*stored, base))
    return merged if exact else merged.float()


def _participants(
    terms: Sequence[Tensor], weights: Sequence[Tensor], mixing: Mixing, extra: Sequence[float]
) -> tuple[list[Tensor], Sequence[Tensor | float]]:
    """Which terms take part, and what multiplies them."""
    kept = [weight != 0 for weight in weights]
    ones = (1.0,) * len(terms)
    all_terms = _added(terms)
    noise = _added([term.abs() for term in terms]).mul_(-(2.0**-51) * len(terms))
    if mixing.rule is Rule.ELECT:
        sign = torch.where(all_terms >= noise, 1.0, -1.0).double()
        return [term * sign > 0 for term in terms], extra
    if mixing.rule is Rule.LARGEST:
        zero = torch.zeros_like(terms[0])
        high, low = torch.stack([zero, *terms]).amax(0), torch.stack([zero, *terms]).amin(0)
        chosen = high.where(high >= -low, low)
        return [(term == chosen) & left for term, left in zip(terms, kept, strict=True)], ones
    if mixing.rule is Rule.CONSENSUS:
        pairs = zip(terms, extra, strict=True)
        votes = [t.abs() >= ((all_terms - t).abs() + noise) * ratio for t, ratio in pairs]
        agreed = _added([vote.double() for vote in votes]) >= mixing.enough
        return [agreed & left for left in kept], ones
    if mixing.rule is Rule.ALONE:
        alone = _added([left.double() for left in kept]) == 1
        return kept, [torch.ones_like(terms[0]).masked_fill_(alone, ratio) for ratio in extra]
    return kept, ones


def _added(tensors: Sequence[Tensor]) -> Tensor:
    """The sum in order, as the kernel adds."""
    total = torch.zeros_like(tensors[0])
    for tensor in tensors:
        total += tensor
    return total


def _restrained(source: Span, base: Span, part: Thinned) -> Tensor:
    stored = source.tensor()
    if part.move == math.inf:
        return stored
    wide = base.tensor().double()
    near = torch.clamp(stored.double(), wide - part.move, wide + part.move)
    return near if "F64" in (source.dtype.code, base.dtype.code) else near.float()


def _left(source: Span, base: Span, part: Thinned, sources: Sequence[Span]) -> Tensor:
    """What is left of a source, one of ``sources``, as float64 factors."""
    if part.varied:
        keys = keys_of(variance(sources), None)
    else:
        keys = keys_of(Span.of(_restrained(source, base, part)), base)
    kept = (keys > part.low - 1) & (keys <= part.high - 1)
    if part.keep:
        kept |= _first(keys == part.low - 1, part.keep)
    if part.drop:
        kept &= ~_first(keys == part.high - 1, part.drop)
    if isinstance(part.draw, Ranked):
        return kept.double().mul_(_drawn_by_rank(source, base, part.draw))
    if part.draw is not None:
        key, probability = part.draw
        kept &= mixed_words(len(keys), key).long() < limit_of(probability)
    return kept.double()


def _first(chosen: Tensor, number: int) -> Tensor:
    return chosen & (chosen.cumsum(0) <= number)


def norms(sources: Sequence[Span], base: Span, thinned: Sequence[Thinned], squared: bool) -> np.ndarray:
    out = np.empty((2, len(sources)))
    wide = base.tensor().double()
    for number, (source, part) in enumerate(zip(sources, thinned, strict=True)):
        size = _restrained(source, base, part).double() - wide
        size = torch.where(size.isfinite(), size, 0.0)
        size = size.square_() if squared else size.abs_()
        whole = 0.0 if squared else float(size.sum())
        out[:, number] = whole, float((size * _left(source, base, part, sources)).sum())
    return out


def variance(sources: Sequence[Span]) -> Span:
    first = sources[0].tensor().double()
    total, square = torch.zeros_like(first), torch.zeros_like(first)
    for source in sources[1:]:
        difference = source.tensor().double() - first
        total += difference
        square += difference.square_()
    each = 1.0 / len(sources)
    return Span.of(((square - total * total * each) * each).float())


def _drawn_by_rank(source: Span, base: Span, draw: Ranked) -> Tensor:
    """float32 factors of the elements, 0 of those that are dropped."""
    probability = _row_ranks(keys_of(source, base).view(-1, draw.columns)).view(-1)
    probability.mul_(draw.most - draw.least).add_(draw.least)
    uniform = mixed_words(base.count, draw.key).double().add_(2.0**31).mul_(2.0**-32)
    kept = 1.0 / probability if draw.inverse else torch.ones_like(probability)
    return kept.where(uniform < probability, 0.0)


def _row_ranks(keys: Tensor) -> Tensor:
    """Where each key stands in its row: 0 for the least, 1 for the greatest."""
    rows, columns = keys.shape
    if columns == 1:
        return torch.full((rows, 1), 0.5)
    keys, order = keys.sort(dim=1)
    place = torch.arange(columns).expand(rows, columns)
    changes = keys[:, 1:] != keys[:, :-1]
    edge = torch.ones(rows, 1, dtype=torch.bool)
    first = place.where(torch.cat([edge, changes], 1), 0).cummax(1).values
    last = place.where(torch.cat([changes, edge], 1), columns).flip(1).cummin(1).values.flip(1)
    ranks = ((first + last).double() * (0.5 / (columns - 1))).float()
    return torch.empty_like(ranks).scatter_(1, order, ranks)


def mixed_words(count: int, key: Key) -> Tensor:
    """Returns int32 ``[count]``: :func:`words`, whose highest bit is the sign."""
    return torch.from_numpy(words(count, key).view(np.int32))
