"""The block kernels of task vectors (a parent minus the base): keys, sums by rules, draws, ranks.

A difference's *key* is the bit pattern of its magnitude in float32, which sorts as the magnitude does.
Compiled where possible; the torch versions give the same bytes, and serve float64 storage.
"""

from __future__ import annotations

import ctypes
import enum
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from merge_models.merge.kernels.blocks import NOT_FINITE, OVERFLOW, native_library

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
_TARGETS = (torch.float32, torch.float16, torch.bfloat16)
_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_SIGNATURES = {
    "count_keys": (
        _INT,
        [_INT, _POINTER, _POINTER, _POINTER, _INT, _SIZE, _INT, _POINTER, _INT, ctypes.c_uint32, _POINTER],
    ),
    "gather_keys": (
        _INT,
        [_INT, _POINTER, _POINTER, _POINTER, _INT, _SIZE, _INT, _POINTER, _POINTER, ctypes.c_uint32]
        + [_POINTER] * 3,
    ),
    "count_shared": (
        _INT,
        [_INT, _POINTER, _POINTER, _POINTER, _INT, _SIZE, ctypes.c_uint32, _POINTER],
    ),
    "variance": (_INT, [_INT, _POINTER, _POINTER, _SIZE, _POINTER]),
    "energies": (None, [_INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _SIZE, _POINTER]),
    "mix": (
        _INT,
        [_INT, _POINTER, _POINTER, _POINTER, _INT]
        + [_POINTER] * 8
        + [_INT, _INT, _INT, ctypes.c_double, _SIZE, _POINTER, _INT],
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


_TALLIES = 1 << 10

Tally = tuple[Tensor, Tensor]
"""Keys, int32, and how many of each, int32; the same key may stand in several places."""


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
    within: Tensor
    above: Tensor
    positive: Tensor


def gather_keys(
    stored: Sequence[Tensor],
    base: Tensor | None,
    windows: Sequence[Sequence[tuple[int, int]]],
    least: int,
) -> Gathered:
    """Keys of each source's difference from the base (of the source, without one) that lie in windows.

    Args:
        stored: N sources, in their storage dtypes.
        base: the base, or None.
        windows: for each source, W windows ``(first, stop)``: keys from ``first`` to ``stop - 1``.
        least: from which key on :attr:`Gathered.positive` counts.
    """
    library = _library_for(*(stored if base is None else [*stored, base]))
    if library is None:
        return _torch_gather(stored, base, windows, least)
    shape, count = (len(stored), len(windows[0])), stored[0].numel()
    positive, above, within, entries = (torch.zeros(n, dtype=torch.int64) for n in (shape[:1], *[shape] * 3))
    edges = [window for row in windows for window in row]
    words = ctypes.c_uint32 * len(edges)
    keys, times = _room(len(edges), count + _TALLIES)
    _check(
        library.merge_models_gather_keys(
            len(stored), _addresses(stored), _codes(stored), None if base is None else base.data_ptr(),
            0 if base is None else _TYPES[base.dtype], count, shape[1], words(*[a for a, _ in edges]),
            words(*[b for _, b in edges]), least, _addresses(keys), _addresses(times),
            _addresses([positive, above, within, entries]),
        )
    )  # fmt: skip
    numbers = entries.reshape(-1).tolist()
    flat = [(k[:n].clone(), t[:n].clone()) for k, t, n in zip(keys, times, numbers, strict=True)]
    inside = [flat[at : at + shape[1]] for at in range(0, len(flat), shape[1])]
    for row, sizes, spans in zip(inside, within, windows, strict=True):
        row[:] = [
            (torch.tensor([first], dtype=torch.int32), size.reshape(1).int()) if stop - first == 1 else tally
            for tally, size, (first, stop) in zip(row, sizes, spans, strict=True)
        ]
    return Gathered(inside, within, above, positive)


_kept = threading.local()


def _room(number: int, count: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """A thread's own scratch memory, kept for its next block: fresh memory costs more than its use."""
    room: Tensor | None = getattr(_kept, "room", None)
    if room is None or room.shape[1] < number or room.shape[2] < count:
        room = _kept.room = torch.empty(2, number, count, dtype=torch.int32)
    return list(room[0, :number]), list(room[1, :number])


def _torch_gather(
    stored: Sequence[Tensor],
    base: Tensor | None,
    windows: Sequence[Sequence[tuple[int, int]]],
    least: int,
) -> Gathered:
    inside: list[list[Tally]] = []
    above, within, positive = [], [], []
    for tensor, row in zip(stored, windows, strict=True):
        keys = keys_of(tensor, base).reshape(-1)
        found = [keys[(keys > first - 1) & (keys <= stop - 1)] for first, stop in row]
        tallies = [k.unique(return_counts=True) for k in found]
        inside.append([(k, number.int()) for k, number in tallies])
        within.append([len(k) for k in found])
        above.append([int((keys > stop - 1).sum()) for _, stop in row])
        positive.append(int((keys > least - 1).sum()))
    counts = (torch.tensor(numbers, dtype=torch.int64) for numbers in (within, above, positive))
    return Gathered(inside, *counts)


def count_shared(stored: Sequence[Tensor], base: Tensor, low: int) -> Tensor:
    """How many elements of each source have keys above ``low``: int64 ``[2, N]``, with others, alone."""
    out = torch.zeros(2, len(stored), dtype=torch.int64)
    library = _library_for(*stored, base)
    if library is not None:
        _check(
            library.merge_models_count_shared(
                len(stored), _addresses(stored), _codes(stored), base.data_ptr(), _TYPES[base.dtype],
                base.numel(), low, out.data_ptr(),
            )
        )  # fmt: skip
        return out
    changed = torch.stack([keys_of(tensor, base) > low for tensor in stored]).flatten(1)
    alone = changed & (changed.sum(0) == 1)
    out[1] = alone.sum(1)
    out[0] = changed.sum(1) - out[1]
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


def energies(stored: Sequence[Tensor], base: Tensor, mask: Tensor | None) -> Tensor:
    """Sums of squares of each source's difference from the base, float64 ``[N]``.

    Compiled and torch sums agree to rounding, not to the bit.

    Args:
        stored: N sources, in their storage dtypes.
        base: the base.
        mask: bool, which elements count; all without it. Those that are not finite never do.
    """
    out = torch.zeros(len(stored), dtype=torch.float64)
    library = _library_for(*stored, base)
    if library is not None:
        library.merge_models_energies(
            len(stored), _addresses(stored), _codes(stored), base.data_ptr(), _TYPES[base.dtype],
            None if mask is None else mask.data_ptr(), base.numel(), out.data_ptr(),
        )  # fmt: skip
        return out
    for energy, tensor in zip(out, stored, strict=True):
        delta = (tensor.double() - base.double()).reshape(-1)
        counts = delta.isfinite() if mask is None else delta.isfinite() & mask.reshape(-1)
        delta.masked_fill_(~counts, 0.0)
        energy.copy_(delta @ delta)
    return out


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


class Rule(enum.IntEnum):
    """Which terms take part in an element's sum."""

    SUM = 0
    """All that are not thinned out."""
    ELECT = 1
    """Those of the sign that the sum of all has; zero and rounding noise count as plus. ``extra`` multiplies
    them after the vote."""
    LARGEST = 2
    """The one of largest magnitude, the positive one of two; all that equal it."""
    CONSENSUS = 3
    """All where at least ``enough`` of them hold their own: ``|t_i| >= extra_i * |sum of the others|``."""
    ALONE = 4
    """All; ``extra`` multiplies those that are alone in their element."""


@dataclass(frozen=True)
class Mixing:
    """How terms ``t_i = factor_i * (what is left of task vector i)`` become one.

    Attributes:
        rule: which take part in an element's sum.
        factors: of each parent.
        shares: of each parent, by whose sum over those that take part ``normalize`` divides; 1 by default.
        extra: of each parent, as the rule has it; 1 by default.
        normalize: whether to divide by shares (by 1 where they cancel).
        enough: parents that make a consensus.
        scale: of the sum.
    """

    rule: Rule
    factors: Sequence[float]
    shares: Sequence[float] | None = None
    extra: Sequence[float] | None = None
    normalize: bool = False
    enough: int = 0
    scale: float = 1.0


def mix(stored: Sequence[Tensor], base: Tensor, thinned: Sequence[Thinned], mixing: Mixing) -> Tensor:
    """:func:`mix_into` a new tensor: float32 (float64 where a source is float64), shaped as the base."""
    exact = any(tensor.dtype == torch.float64 for tensor in (*stored, base))
    out = torch.empty(base.shape, dtype=torch.float64 if exact else torch.float32)
    mix_into(stored, base, thinned, mixing, out)
    return out


def mix_into(
    stored: Sequence[Tensor], base: Tensor, thinned: Sequence[Thinned], mixing: Mixing, out: Tensor
) -> int:
    """Writes ``base + scale * sum_i t_i`` over the terms that take part into ``out``.

    Sums are float64, rounded to float32 (not where a source is float64), and then to the dtype of ``out``.

    Terms whose coefficient is 0 never take part, nor zero terms in an election. Where the parents that take
    part are equal and their coefficients sum to 1, the result is their value, bit for bit.

    Args:
        stored: N parents, in their storage dtypes.
        base: the base.
        thinned: what is left of each task vector.
        mixing: the rule.
        out: as many elements as the base has.

    Returns:
        ``NOT_FINITE`` where a source is NaN or Inf, ``OVERFLOW`` where only what is written is, else 0.
    """
    count = len(stored)
    ones = (1.0,) * count
    factors = [part.factor * factor for part, factor in zip(thinned, mixing.factors, strict=True)]
    shares, extra = mixing.shares or ones, mixing.extra or ones
    library = _library_for(*stored, base)
    if library is None or out.dtype not in _TARGETS:
        weights = [_coefficients(*each, base) for each in zip(stored, thinned, factors, strict=True)]
        out.view(base.shape).copy_(_torch_mix(stored, base, weights, mixing, shares, extra))
        return _flags([*stored, base], out)
    doubles, words = ctypes.c_double * count, ctypes.c_uint32 * count
    draws = [t.draw if t.draw and _limit(t.draw[1]) < 2**31 else None for t in thinned]
    keys = [None if d is None else (ctypes.c_uint32 * 3)(*d[0]) for d in draws]
    limits = [0 if d is None else _limit(d[1]) for d in draws]
    flags = library.merge_models_mix(
        count, _addresses(stored), _codes(stored), base.data_ptr(), _TYPES[base.dtype],
        words(*[t.low for t in thinned]), words(*[t.high for t in thinned]),
        _addresses([t.scale for t in thinned]),
        (_POINTER * count)(*[None if key is None else ctypes.addressof(key) for key in keys]),
        (ctypes.c_int32 * count)(*limits), doubles(*factors), doubles(*extra), doubles(*shares),
        mixing.rule, mixing.normalize, mixing.enough, mixing.scale, base.numel(), out.data_ptr(),
        _TYPES[out.dtype],
    )  # fmt: skip
    _check(flags < 0)
    return NOT_FINITE if flags & 1 else OVERFLOW if flags else 0


def _flags(sources: Sequence[Tensor], out: Tensor) -> int:
    if all(bool(torch.isfinite(_wide(tensor)).all()) for tensor in sources):
        return 0 if bool(torch.isfinite(_wide(out)).all()) else OVERFLOW
    return NOT_FINITE


def _torch_mix(
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
    merged = least.where(one, wide + total * quotient)
    exact = any(t.dtype == torch.float64 for t in (*stored, base))
    return merged if exact else merged.float()


def _participants(
    terms: Sequence[Tensor], weights: Sequence[Tensor], mixing: Mixing, extra: Sequence[float]
) -> tuple[list[Tensor], Sequence[Tensor | float]]:
    """Which terms take part, and what multiplies them."""
    kept = [weight != 0 for weight in weights]
    ones = (1.0,) * len(terms)
    if mixing.rule is Rule.ELECT:
        size = _added([term.abs() for term in terms])
        sign = torch.where(_added(terms) >= -(2.0**-51) * len(terms) * size, 1.0, -1.0).double()
        return [term * sign > 0 for term in terms], extra
    if mixing.rule is Rule.LARGEST:
        zero = torch.zeros_like(terms[0])
        high, low = torch.stack([zero, *terms]).amax(0), torch.stack([zero, *terms]).amin(0)
        chosen = high.where(high >= -low, low)
        return [(term == chosen) & left for term, left in zip(terms, kept, strict=True)], ones
    if mixing.rule is Rule.CONSENSUS:
        all_terms = _added(terms)
        votes = [t.abs() >= (all_terms - t).abs() * ratio for t, ratio in zip(terms, extra, strict=True)]
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


def _coefficients(stored: Tensor, part: Thinned, factor: float, base: Tensor) -> Tensor:
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
    ranks = ((first + last).double() * (0.5 / (columns - 1))).float()
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
