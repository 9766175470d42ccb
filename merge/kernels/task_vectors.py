"""The block kernels of task vectors (a parent minus the base): keys, elected sums, draws, ranks.

A difference's *key* is the bit pattern of its magnitude in float32, which sorts as the magnitude does.
Compiled where possible; the torch versions give the same bytes, and serve float64 storage.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from merge_models.merge.kernels.blocks import native_library

ALL_KEYS = 1 << 31
"""Every key is below it."""

Key = tuple[int, int, int]
"""Three 32-bit words that decide a sequence of draws."""

_TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 4,
}
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_SIGNATURES = {
    "count_keys": (
        _INT,
        [_INT, _POINTER, _POINTER, _POINTER, _INT, _SIZE, _INT, _POINTER, _INT, ctypes.c_uint32, _POINTER],
    ),
    "variance": (_INT, [_INT, _POINTER, _POINTER, _SIZE, _POINTER]),
    "elected_sum": (
        _INT,
        [_INT, _POINTER, _POINTER, _POINTER, _INT]
        + [_POINTER] * 8
        + [_INT, _INT, ctypes.c_double, _SIZE, _POINTER],
    ),
    "draw": (None, [_SIZE, _POINTER, _POINTER, ctypes.c_int32, _INT, _POINTER]),
    "row_ranks": (_INT, [_POINTER, _INT, _POINTER, _INT, _SIZE, _SIZE, _POINTER]),
    "checksum": (None, [_POINTER, _SIZE, _POINTER]),
}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    library = native_library()
    if library is not None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, f"merge_models_{name}")
            function.restype, function.argtypes = result, arguments
    return library


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, where they read all of these."""
    fits = all(tensor.dtype in _TYPES and tensor.is_contiguous() for tensor in tensors)
    return _library() if fits else None


def _addresses(tensors: Sequence[Tensor | None]):
    return (_POINTER * len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def _codes(tensors: Sequence[Tensor]):
    return (_INT * len(tensors))(*[_TYPES[t.dtype] for t in tensors])


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a block kernel's scratch tiles")


def _wide(stored: Tensor) -> Tensor:
    return stored if stored.dtype == torch.float64 else stored.float()


def keys_of(stored: Tensor, base: Tensor | None) -> Tensor:
    """int32 keys of ``stored - base`` (of ``stored`` where there is no base), shaped as ``stored``."""
    difference = _wide(stored) if base is None else _wide(stored) - _wide(base)
    return difference.abs().float().view(torch.int32)


def count_keys(
    stored: Sequence[Tensor], base: Tensor | None, firsts: Sequence[Sequence[int]], shift: int, bins: int
) -> Tensor:
    """Histograms of the keys of each source's difference from the base (of the source, without one).

    Args:
        stored: N sources, in their storage dtypes.
        base: the base, or None.
        firsts: for each source, where each of its W windows begins.
        shift: log2 of the keys in a bin.
        bins: bins of a window.

    Returns:
        int64 ``[N, W, bins]``: how many keys ``k`` have ``(k - first) >> shift`` equal to the bin.
    """
    windows = len(firsts[0])
    out = torch.zeros(len(stored), windows, bins, dtype=torch.int64)
    sources = stored if base is None else [*stored, base]
    library = _library_for(*sources)
    if library is not None:
        flat = [first for row in firsts for first in row]
        _check(
            library.merge_models_count_keys(
                len(stored), _addresses(stored), _codes(stored), None if base is None else base.data_ptr(),
                0 if base is None else _TYPES[base.dtype], stored[0].numel(), windows,
                (ctypes.c_uint32 * len(flat))(*flat), shift, bins, out.data_ptr(),
            )
        )  # fmt: skip
        return out
    for source, tensor in enumerate(stored):
        keys = keys_of(tensor, base).reshape(-1).long()
        for window, first in enumerate(firsts[source]):
            offsets = (keys - first) >> shift
            inside = offsets[(offsets >= 0) & (offsets < bins)]
            out[source, window] = torch.bincount(inside, minlength=bins)
    return out


def variance(stored: Sequence[Tensor]) -> Tensor:
    """Population variance over sources at each element, float32; exactly 0 where they are equal."""
    library = _library_for(*stored)
    if library is not None:
        out = torch.empty(stored[0].shape, dtype=torch.float32)
        _check(
            library.merge_models_variance(
                len(stored), _addresses(stored), _codes(stored), out.numel(), out.data_ptr()
            )
        )
        return out
    first = stored[0].double()
    differences = [tensor.double() - first for tensor in stored]
    mean = torch.zeros_like(first)
    for difference in differences:
        mean += difference
    mean /= len(stored)
    total = torch.zeros_like(first)
    for difference in differences:
        total += (difference - mean).square_()
    return (total / len(stored)).float()


@dataclass(frozen=True)
class Thinned:
    """What is left of one task vector in a block.

    Attributes:
        low, high: only elements with keys in ``[low, high)`` are left.
        draw: only elements that :func:`draw` with this key and probability gives 1 are left; None leaves all.
        scale: float32 factors of the elements, shaped as the block (0 drops one), or None.
        factor: factor of them all, beside the weight.
    """

    low: int = 0
    high: int = ALL_KEYS
    draw: tuple[Key, float] | None = None
    scale: Tensor | None = None
    factor: float = 1.0


def elected_sum(
    stored: Sequence[Tensor],
    base: Tensor,
    thinned: Sequence[Thinned],
    weights: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    weighted_votes: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """``base + scale * sum_i w_i t_i`` of thinned task vectors ``t_i``, in float64, rounded once.

    Parents take part in an element where their ``t_i`` is not 0 (their coefficient, without ``elect``).
    With ``elect``, only those whose vote has the sign of the sum of votes (zero and rounding noise count
    as plus); a vote is ``w_i t_i``, or ``t_i``. ``normalize`` divides the sum by the weights of those that
    take part (by 1 where these cancel). Where they are equal and their coefficients sum to 1, the result
    is their value, bit for bit.

    Args:
        stored: N parents, in their storage dtypes.
        base: the base.
        thinned: what is left of each task vector.
        weights: of each parent.
        elect: whether parents vote on the sign.
        normalize: whether to divide by the weights of those that take part.
        weighted_votes: whether weights count in the vote.
        scale: of the sum (``lambda``).

    Returns:
        float32 (float64 where a source is float64), shaped as the base.
    """
    count = len(stored)
    factors = [part.factor for part in thinned]
    gains = None if weighted_votes else list(weights)
    if weighted_votes:
        factors = [f * w for f, w in zip(factors, weights, strict=True)]
    library = _library_for(*stored, base)
    if library is None:
        sums = _Sums(factors, gains, weights, elect, normalize, scale)
        return _torch_elected_sum(stored, base, thinned, sums)
    out = torch.empty(base.shape, dtype=torch.float32)
    doubles, words = ctypes.c_double * count, ctypes.c_uint32 * count
    draws = [t.draw if t.draw and _limit(t.draw[1]) < 2**31 else None for t in thinned]
    keys = [None if d is None else (ctypes.c_uint32 * 3)(*d[0]) for d in draws]
    limits = [0 if d is None else _limit(d[1]) for d in draws]
    _check(
        library.merge_models_elected_sum(
            count, _addresses(stored), _codes(stored), base.data_ptr(), _TYPES[base.dtype],
            words(*[t.low for t in thinned]), words(*[t.high for t in thinned]),
            _addresses([t.scale for t in thinned]),
            (_POINTER * count)(*[None if key is None else ctypes.addressof(key) for key in keys]),
            (ctypes.c_int32 * count)(*limits), doubles(*factors),
            None if gains is None else doubles(*gains), doubles(*weights),
            elect, normalize, scale, base.numel(), out.data_ptr(),
        )
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class _Sums:
    factors: Sequence[float]
    gains: Sequence[float] | None
    shares: Sequence[float]
    elect: bool
    normalize: bool
    scale: float


def _torch_elected_sum(
    stored: Sequence[Tensor], base: Tensor, thinned: Sequence[Thinned], sums: _Sums
) -> Tensor:
    """The kernel's arithmetic, step by step."""
    wide = base.double()
    values = [x.double() for x in stored]
    weights = [_coefficients(x, base, t, f) for x, t, f in zip(stored, thinned, sums.factors, strict=True)]
    terms = [(x - wide) * w for x, w in zip(values, weights, strict=True)]
    votes, size = torch.zeros_like(wide), torch.zeros_like(wide)
    for term in terms:
        votes += term
        size += term.abs()
    sign = torch.where(votes >= -(2.0**-51 * len(stored)) * size, 1.0, -1.0).double()
    total, share, whole, coefficient = (torch.zeros_like(wide) for _ in range(4))
    least, most = torch.full_like(wide, math.inf), torch.full_like(wide, -math.inf)
    gains = sums.gains or [1.0] * len(stored)
    for x, w, term, gain, own in zip(values, weights, terms, gains, sums.shares, strict=True):
        takes_part = (term * sign if sums.elect else w.abs()) > 0
        total += (term * gain).where(takes_part, 0.0)
        share += takes_part.double() * own
        whole += takes_part.double() * abs(own)
        coefficient += (w * gain).where(takes_part, 0.0)
        least = x.where(takes_part & (x < least), least)
        most = x.where(takes_part & (x > most), most)
    divisor = share.where((share.abs() > 1e-12 * whole) & sums.normalize, 1.0)
    quotient = torch.full_like(divisor, sums.scale) / divisor  # a true division, unlike scale / divisor
    one = ((coefficient * quotient - 1.0).abs() <= 1e-13) & (least == most)
    merged = least.where(one, wide + total * quotient)
    exact = any(t.dtype == torch.float64 for t in (*stored, base))
    return merged if exact else merged.float()


def _coefficients(stored: Tensor, base: Tensor, part: Thinned, factor: float) -> Tensor:
    keys = keys_of(stored, base)
    kept = (keys > part.low - 1) & (keys <= part.high - 1)
    coefficients = torch.zeros(keys.shape, dtype=torch.float64).masked_fill_(kept, factor)
    if part.draw:
        coefficients *= draw(stored.shape, *part.draw)
    return coefficients if part.scale is None else coefficients * part.scale


_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, 1))


def _limit(probability: float) -> int:
    """The signed 32-bit word below which a draw gives 1 with that probability; 2^31 where it always does."""
    return math.ceil(probability * 2**32) - 2**31


def draw(shape: Sequence[int], key: Key, probability: Tensor | float, inverse: bool = False) -> Tensor:
    """Keyed Bernoulli draws: the same for the same key, element by element, on every machine.

    Args:
        shape: of the result.
        key: three 32-bit words.
        probability: of 1, for all elements or for each (float32, of that shape), in [0, 1].
        inverse: give ``1 / probability`` instead of 1; for one probability for each.

    Returns:
        float32: 1 (or ``1 / probability``) where drawn, else 0. Probabilities hold to 2^-32.
    """
    out = torch.empty(tuple(shape), dtype=torch.float32)
    each, limit = None, 0
    if isinstance(probability, Tensor):
        each = probability
    else:
        limit = _limit(probability)
    if limit >= 2**31:
        return out.fill_(1.0)
    library = _library()
    if library is not None:
        library.merge_models_draw(
            out.numel(), (ctypes.c_uint32 * 3)(*key), None if each is None else each.data_ptr(), limit,
            inverse, out.data_ptr(),
        )  # fmt: skip
        return out
    words = mixed_words(out.numel(), key).view(out.shape)
    if each is None:
        return out.copy_(words < limit)
    uniform = words.double().add_(2.0**31).mul_(2.0**-32)
    kept = 1.0 / each if inverse else torch.ones_like(each)
    return kept.where(uniform < each, 0.0)


def mixed_words(count: int, key: Key) -> Tensor:
    """int32 ``[count]``: the kernel's bijection of 0, 1, 2, ... under a key; int32 products wrap around."""
    words = torch.arange(count, dtype=torch.int64).to(torch.int32) + _signed(key[0])
    for (shift, multiplier), add in zip(_ROUNDS, (key[1], key[2], 0, 0), strict=True):
        words ^= (words >> shift) & ((1 << (32 - shift)) - 1)
        words *= _signed(multiplier)
        words += _signed(add)
    return words


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def row_ranks(stored: Tensor, base: Tensor) -> Tensor:
    """Where each key of ``stored - base`` stands in its row: 0 for the least, 1 for the greatest.

    Equal keys share their mean rank; a row of one element has rank 1/2.

    Args:
        stored: ``[rows, columns]``.
        base: the same.

    Returns:
        float32 ``[rows, columns]``.
    """
    rows, columns = stored.shape
    library = _library_for(stored, base)
    if library is not None:
        out = torch.empty(rows, columns, dtype=torch.float32)
        _check(
            library.merge_models_row_ranks(
                stored.data_ptr(), _TYPES[stored.dtype], base.data_ptr(), _TYPES[base.dtype], rows, columns,
                out.data_ptr(),
            )
        )  # fmt: skip
        return out
    if columns == 1:
        return torch.full((rows, 1), 0.5)
    keys, order = keys_of(stored, base).sort(dim=1)
    place = torch.arange(columns).expand(rows, columns)
    changes = keys[:, 1:] != keys[:, :-1]
    edge = torch.ones(rows, 1, dtype=torch.bool)
    first = place.where(torch.cat([edge, changes], 1), 0).cummax(1).values
    last = place.where(torch.cat([changes, edge], 1), columns).flip(1).cummin(1).values.flip(1)
    ranks = ((first + last).double() * 0.5 / (columns - 1)).float()
    return torch.empty_like(ranks).scatter_(1, order, ranks)


def checksum(stored: Tensor) -> tuple[int, int]:
    """Two 64-bit sums of a tensor's bytes, one of them weighted by position: they tell contents apart."""
    data = stored.reshape(-1).view(torch.uint8).numpy()
    library = _library()
    if library is not None:
        sums = (ctypes.c_uint64 * 2)()
        library.merge_models_checksum(data.ctypes.data, data.nbytes, sums)
        return sums[0], sums[1]
    words = np.frombuffer(data.tobytes() + bytes(8 - data.nbytes % 8), dtype="<u8")
    places = np.arange(1, len(words) + 1, dtype=np.uint64)
    return int(words.sum(dtype=np.uint64)), int((words * places).sum(dtype=np.uint64))
