"""From float32 to narrower formats: to nearest even, or by keyed draws; and what that leaves of a change."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.contract.span import OVERFLOW, Span, address_of
from merge_models.merge.kernels.blocks import NATIVE_TYPES, native_library
from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models.merge.kernels.terms import Key
else:
    torch = LazyModule("torch")

_NATIVE_TARGETS = ("F16", "BF16")
_LOWEST_EXPONENT = {"BF16": -126, "F16": -14, "F8_E4M3": -6, "F8_E5M2": -14}


def is_narrow(dtype: DType) -> bool:
    """Returns whether rounding to it loses more than float32 has."""
    return dtype.code in _LOWEST_EXPONENT


def rounding_key(seed: int, name: str, start: int) -> Key:
    """Returns the key of a tensor's draws from an element on: element ``i`` of a tensor has its own draw.

    Elements 2^32 apart share theirs.
    """
    text = f"rounding\0{seed}\0{name}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=12).digest()
    first, second, third = (int.from_bytes(digest[at : at + 4], "little") for at in (0, 4, 8))
    return (first + start) % (1 << 32), second, third


def round_into(values: np.ndarray, out: Span, key: Key | None = None) -> int:
    """Writes float32 ``values`` into ``out``: to nearest even, or, with a key, up or down at random.

    The probability of up is the distance from the neighbour below, over that between the neighbours, so the
    mean over keys is the value: exactly where the values are normal numbers of the format, and of BF16; to
    2^-32 of the distance else. Values that fit are never changed. What is not below the largest number of the
    format goes to nearest: which values overflow is no matter of luck.

    Args:
        values: float32 ``[count]``.
        out: where to, in a 16- or 8-bit floating format.
        key: of the draws, from :func:`rounding_key`; None rounds to nearest.

    Returns:
        ``OVERFLOW`` where a stored value is not finite, else 0.
    """
    library = native_library()
    if library is not None and out.dtype.code in _NATIVE_TARGETS:
        words = None if key is None else (ctypes.c_uint32 * 3)(*key)
        bad = library.merge_models_round(
            address_of(values), values.size, NATIVE_TYPES[out.dtype.code], words, address_of(out.data)
        )
        return OVERFLOW if bad else 0
    given = torch.from_numpy(values)
    nearest = given.to(getattr(torch, out.dtype.torch_name))
    stored = nearest if key is None else _drawn(given, nearest, out.dtype, key)
    out.tensor().copy_(stored)
    return 0 if bool(torch.isfinite(stored.float()).all()) else OVERFLOW


def _drawn(values: Tensor, nearest: Tensor, dtype: DType, key: Key) -> Tensor:
    """The kernel's arithmetic: magnitudes in 2^-32 of the format's step, and a random word added to them."""
    from merge_models.merge.kernels.torch_task_vectors import mixed_words

    words = mixed_words(values.numel(), key).long() & 0xFFFFFFFF
    magnitude = values.double().abs()
    exponent = ((magnitude.view(torch.int64) >> 52) - 1023).clamp_(min=_LOWEST_EXPONENT[dtype.code])
    step = exponent - (dtype.significand - 1)
    steps = ((magnitude * _power_of_two(32 - step)).long() + words) >> 32
    rounded = (steps.double() * _power_of_two(step)).copysign(values).float().to(nearest.dtype)
    fine = magnitude < torch.finfo(nearest.dtype).max
    bits = torch.int8 if dtype.size == 1 else torch.int16
    return torch.where(fine, rounded.view(bits), nearest.view(bits)).view(nearest.dtype)


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 1023) << 52).view(torch.float64)


def survival(values: np.ndarray, stored: Span, reference: Span) -> np.ndarray:
    """Returns what rounding left of changes ``c = values - reference``: ``k``, the difference of both once
    rounded.

    Args:
        values: float32 ``[count]``, before rounding.
        stored: the same as they were stored.
        reference: what they are compared with.

    Returns:
        float64 ``[5]``: sum of c^2; sum of c k; sum of (stored - values)^2; how many c are not 0; of these,
        how many k are 0. Elements where anything is not finite do not count.
    """
    out = np.zeros(5)
    library = native_library()
    if library is not None and stored.dtype.code in _NATIVE_TARGETS and reference.dtype.code in NATIVE_TYPES:
        library.merge_models_survival(
            address_of(values), address_of(stored.data), NATIVE_TYPES[stored.dtype.code],
            address_of(reference.data), NATIVE_TYPES[reference.dtype.code], values.size, address_of(out),
        )  # fmt: skip
        return out
    kept, given = stored.tensor(), reference.tensor()
    value, origin, left = torch.from_numpy(values).double(), given.double(), kept.double()
    change, rest, error = value - origin, left - given.float().to(kept.dtype).double(), left - value
    fine = torch.isfinite(change) & torch.isfinite(rest) & torch.isfinite(error)
    change, rest, error = (torch.where(fine, x, 0.0) for x in (change, rest, error))
    lost = (change != 0) & (rest == 0)
    sums = (change @ change, change @ rest, error @ error, (change != 0).sum(), lost.sum())
    out[:] = [float(x) for x in sums]
    return out
