"""The block kernels of task vectors (a parent minus the base): what is left of them, sums by rules, draws.

Compiled where possible; the torch versions (torch_task_vectors.py) give the same bytes, and serve float64
storage. Keys are those of keys.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span, address_of, wide_span
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.blocks import NATIVE_TARGETS
from merge_models.merge.kernels.compiled import DOUBLE, WORD, place, type_of
from merge_models.merge.kernels.terms import Mixing, Ranked, Thinned, limit_of


def mix(sources: Sequence[Span], base: Span, thinned: Sequence[Thinned], mixing: Mixing) -> Span:
    """Returns :func:`mix_into` new memory: float32 (float64 where a source is float64)."""
    out = wide_span((*sources, base))
    mix_into(sources, base, thinned, mixing, out)
    return out


def mix_into(
    sources: Sequence[Span], base: Span, thinned: Sequence[Thinned], mixing: Mixing, out: Span
) -> int:
    """Writes ``base + scale * sum_i t_i`` over the terms that take part into ``out``.

    Sums are float64, rounded to float32 (not where a source is float64), and then to the dtype of ``out``.

    Terms whose coefficient is 0 never take part, nor zero terms in an election. Where the parents that take
    part are equal and their coefficients sum to 1, the result is their value, bit for bit. Where
    the terms add up to 0 it is the base, bit for bit, whatever multiplies their sum.

    Args:
        sources: N parents.
        base: the base.
        thinned: what is left of each task vector.
        mixing: the rule.
        out: as many elements as the base has.

    Returns:
        ``NOT_FINITE`` where a source is NaN or Inf, ``OVERFLOW`` where only what is written is, else 0.
    """
    count = len(sources)
    ones = (1.0,) * count
    factors = [part.factor * factor for part, factor in zip(thinned, mixing.factors, strict=True)]
    shares, extra = mixing.shares or ones, mixing.extra or ones
    library = compiled.library_for(*sources, base)
    if library is None or out.dtype.code not in NATIVE_TARGETS:
        from merge_models.merge.kernels import torch_task_vectors

        return torch_task_vectors.mix_into(sources, base, thinned, mixing, factors, shares, extra, out)
    doubles = DOUBLE * count
    flags = library.merge_models_mix(
        *compiled.sources(sources), *place(base), _thinnings(thinned, base.count), doubles(*factors),
        doubles(*extra), doubles(*shares), mixing.rule, mixing.normalize, mixing.enough, mixing.scale,
        base.count, address_of(out.data), type_of(out),
    )  # fmt: skip
    compiled.check(flags < 0)
    return NOT_FINITE if flags & 1 else OVERFLOW if flags else 0


def _thinnings(thinned: Sequence[Thinned], count: int):
    for part in thinned:
        assert not isinstance(part.draw, Ranked) or not count % part.draw.columns, "rows are whole"
    return (compiled.Thinning * len(thinned))(*map(_thinning, thinned))


def _thinning(part: Thinned) -> compiled.Thinning:
    told = compiled.Thinning(part.move, part.low, part.high, part.keep, part.drop, varied=part.varied)
    if isinstance(part.draw, Ranked):
        ranked = part.draw
        told.key, told.columns, told.inverse = (WORD * 3)(*ranked.key), ranked.columns, ranked.inverse
        told.least, told.rise = ranked.least, ranked.most - ranked.least
    elif part.draw is not None and (limit := limit_of(part.draw[1])) < 1 << 31:
        told.key, told.limit, told.draws = (WORD * 3)(*part.draw[0]), limit, True
    return told


def norms(
    sources: Sequence[Span], base: Span, thinned: Sequence[Thinned], squared: bool = False
) -> np.ndarray:
    """Sums of the sizes of each source's difference from the base: float64 ``[2, N]``.

    In the first row of all elements, in the second of what is left, factors aside. NaN and Inf count as 0.
    With ``squared``, of squares, and the first row is 0. Compiled and torch sums agree to rounding, not to
    the bit.
    """
    library = compiled.library_for(*sources, base)
    if library is None:
        from merge_models.merge.kernels import torch_task_vectors

        return torch_task_vectors.norms(sources, base, thinned, squared)
    out = np.empty((2, len(sources)))
    known = (*compiled.sources(sources), *place(base), _thinnings(thinned, base.count))
    compiled.check(library.merge_models_norms(*known, squared, base.count, address_of(out)))
    return out


def variance(sources: Sequence[Span]) -> Span:
    """Returns population variance over sources at each element, float32; exactly 0 where they are equal."""
    library = compiled.library_for(*sources)
    if library is None:
        from merge_models.merge.kernels import torch_task_vectors

        return torch_task_vectors.variance(sources)
    out = Span(np.empty(4 * sources[0].count, np.uint8), BY_CODE["F32"])
    library.merge_models_variance(*compiled.sources(sources), out.count, address_of(out.data))
    return out


def checksum(source: Span) -> tuple[int, int]:
    """Returns two 64-bit sums of a span's bytes, one weighted by position: they tell contents apart."""
    data, library = source.data, compiled.library()
    if library is not None:
        sums = (ctypes.c_uint64 * 2)()
        library.merge_models_checksum(address_of(data), data.nbytes, sums)
        return sums[0], sums[1]
    words = np.frombuffer(data.tobytes() + bytes(8 - data.nbytes % 8), dtype="<u8")
    places = np.arange(1, len(words) + 1, dtype=np.uint64)
    return int(words.sum(dtype=np.uint64)), int((words * places).sum(dtype=np.uint64))
