"""Dispatch of the block kernels: compiled where possible, torch otherwise."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span, address_of
from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

NATIVE_TYPES = {"F32": 0, "F16": 1, "BF16": 2, "F8_E4M3": 3, "F8_E5M2": 4}
NATIVE_TARGETS = ("F32", "F16", "BF16")

_INTERFACE = 13
"""As in native.c. Both grow when the arguments or the arithmetic of a kernel change."""


@lru_cache(maxsize=1)
def native_library() -> ctypes.CDLL | None:
    """Returns the compiled kernels, or None where they were not built (or are switched off for a test)."""
    if os.environ.get("MERGE_MODELS_NATIVE", "1") == "0":
        return None
    spec = importlib.util.find_spec("merge_models.merge.kernels._native")
    if spec is None or spec.origin is None:
        return None
    library = None
    try:
        library = ctypes.CDLL(spec.origin)
        built_for = ctypes.c_int.in_dll(library, "merge_models_interface").value
    except (OSError, ValueError):  # for another machine, or from before there was an interface number
        built_for = None
    if library is None or built_for != _INTERFACE:
        warnings.warn(
            "the compiled kernels are not of this version, so the slower torch kernels run;"
            " install the package again: pip install --no-deps --force-reinstall .",
            stacklevel=2,
        )
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.merge_models_weighted_sum.argtypes = [
        number, pointer, pointer, pointer, size, pointer, number,
    ]  # fmt: skip
    library.merge_models_gram.argtypes = [pointer, number, number, pointer, pointer, size, pointer]
    library.merge_models_is_finite.argtypes = [pointer, number, size]
    library.merge_models_round.argtypes = [pointer, size, number, pointer, pointer]
    library.merge_models_survival.argtypes = [pointer, pointer, number, pointer, number, size, pointer]
    library.merge_models_survival.restype = None
    return library


def native_name() -> str:
    """Returns ``"compiled"`` or ``"torch"``: which kernels run on this machine."""
    return "torch" if native_library() is None else "compiled"


def weighted_sum(sources: Sequence[Span], weights: Sequence[float], out: Span) -> int:
    """Writes ``sum_i weights[i] * sources[i]`` into ``out``: float64 sums in the given order, rounded once.

    Sources with weight 0 are left out, so that their values cannot matter.

    Returns:
        ``NOT_FINITE`` where a source (so, a sum) is NaN or Inf, ``OVERFLOW`` where a finite sum does not
        fit the output dtype, else 0.
    """
    used = [(s, float(w)) for s, w in zip(sources, weights, strict=True) if w != 0.0]
    if not used:
        out.data[:] = 0
        return 0
    library = native_library()
    native = (
        library is not None
        and out.dtype.code in NATIVE_TARGETS
        and all(s.dtype.code in NATIVE_TYPES for s, _ in used)
    )
    if native:
        flags = _native_weighted_sum(library, used, out)
    else:
        flags = _torch_weighted_sum(used, out)
    if flags & 1:
        return NOT_FINITE
    return OVERFLOW if flags & 2 else 0


def _addresses(sources: Sequence[Span]):
    return (ctypes.c_void_p * len(sources))(*[address_of(s.data) for s in sources])


def _types(sources: Sequence[Span]):
    return _array(ctypes.c_int, tuple([NATIVE_TYPES[s.dtype.code] for s in sources]))


@lru_cache(maxsize=256)
def _array(kind: Any, values: tuple[float, ...]):
    """An array for a compiled kernel to read; kept, since block after block asks for the same."""
    return (kind * len(values))(*values)


def _native_weighted_sum(library, used: list[tuple[Span, float]], out: Span) -> int:
    sources = [source for source, _ in used]
    weights = _array(ctypes.c_double, tuple([weight for _, weight in used]))
    return library.merge_models_weighted_sum(
        len(used), _addresses(sources), _types(sources), weights, out.count,
        address_of(out.data), NATIVE_TYPES[out.dtype.code],
    )  # fmt: skip


def _torch_weighted_sum(used: list[tuple[Span, float]], out: Span) -> int:
    if out.dtype.code == "F64":
        total = _compensated_sum(used)
    else:
        total = used[0][0].tensor().double() * used[0][1]
        for source, weight in used[1:]:
            total += source.tensor().double() * weight
    stored = out.tensor()
    stored.copy_(total)
    bad_in = not bool(torch.isfinite(total).all())
    bad_out = not bool(torch.isfinite(stored.float() if out.dtype.size < 4 else stored).all())
    return int(bad_in) | (int(bad_out) << 1)


def _compensated_sum(used: list[tuple[Span, float]]) -> Tensor:
    """The sum in doubled precision (Ogita, Rump & Oishi 2005, Dot2), for float64 results.

    The weights' own rounding error is given to the first source: weights that should sum to 1 then do,
    and equal parents come back equal.
    """
    weights = [weight for _, weight in used]
    gap = math.fsum([1.0, *[-w for w in weights]])
    closes = abs(gap) <= 2e-16 * len(used)
    high = torch.full((used[0][0].count,), -0.0, dtype=torch.float64)  # the sum's neutral element
    low = torch.zeros_like(high)
    terms = [*used, (used[0][0], gap)] if closes and gap else used
    for source, weight in terms:
        product, error = _two_product(source.tensor().double(), weight)
        total = high + product
        shadow = total - high
        low += (high - (total - shadow)) + (product - shadow) + error
        high = total
    return torch.where(torch.isfinite(low) & (low != 0), high + low, high)


def _two_product(x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """``x * weight`` and its exact rounding error (Dekker 1971)."""
    product = x * weight
    x_high = x * 134217729.0
    x_high = x_high - (x_high - x)
    w = weight * 134217729.0
    w_high = w - (w - weight)
    x_low, w_low = x - x_high, weight - w_high
    return product, ((x_high * w_high - product) + x_high * w_low + x_low * w_high) + x_low * w_low


def is_finite(span: Span) -> bool:
    """Returns whether no element is NaN or Inf."""
    if not span.dtype.is_float or not span.count:
        return True
    library = native_library()
    if library is not None and span.dtype.code in NATIVE_TYPES:
        return bool(
            library.merge_models_is_finite(address_of(span.data), NATIVE_TYPES[span.dtype.code], span.count)
        )
    values = span.tensor()
    return bool(torch.isfinite(values if span.dtype.size > 1 else values.float()).all())


def moment_count(sources: int) -> int:
    """Returns how many moments :func:`gram_moments` gives for that many sources."""
    return 1 + sources + sources * (sources + 1) // 2


def gram_moments(reference: Span, sources: Sequence[Span]) -> np.ndarray:
    """Returns moments of one block about a reference ``r``: all that isometry-respecting means need.

    Returns:
        float64 array: ``|r|^2``, then ``<r, x_i - r>`` for each source, then ``<x_i - r, x_j - r>`` for
        ``i <= j``, row by row. Differences are taken before products, so that sources 1e-8 apart keep
        their geometry. Add the arrays of blocks to get those of a tensor.
    """
    out = np.zeros(moment_count(len(sources)))
    library = native_library()
    spans = [reference, *sources]
    if library is not None and all(s.dtype.code in NATIVE_TYPES for s in spans):
        failed = library.merge_models_gram(
            address_of(reference.data), NATIVE_TYPES[reference.dtype.code], len(sources),
            _addresses(sources), _types(sources), reference.count, address_of(out),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the Gram kernel's scratch tiles")
        return out
    r = reference.tensor().double()
    differences = [s.tensor().double() - r for s in sources]
    pairs = [(i, j) for i in range(len(sources)) for j in range(i, len(sources))]
    values = [r @ r, *[r @ d for d in differences]]
    values += [differences[i] @ differences[j] for i, j in pairs]
    out[:] = [float(value) for value in values]
    return out
