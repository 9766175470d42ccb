"""The compiled kernels on task vectors, as ctypes sees them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from merge_models.merge.contract.span import Span, address_of
from merge_models.merge.kernels.blocks import NATIVE_TYPES, native_library

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
WORD, FLOAT, DOUBLE = ctypes.c_uint32, ctypes.c_float, ctypes.c_double


class Thinning(ctypes.Structure):
    """``thinning`` of native.c."""

    _fields_ = (
        ("move", DOUBLE),
        ("low", WORD),
        ("high", WORD),
        ("keep", ctypes.c_uint64),
        ("drop", ctypes.c_uint64),
        ("columns", SIZE),
        ("least", FLOAT),
        ("rise", FLOAT),
        ("key", WORD * 3),
        ("limit", ctypes.c_int32),
        ("draws", ctypes.c_int32),
        ("inverse", ctypes.c_int32),
        ("varied", ctypes.c_int32),
    )


_SOURCES = [INT, POINTER, POINTER]
_SIGNATURES = {
    "keys": (None, [POINTER, INT, POINTER, INT, SIZE, POINTER]),
    "count_keys": (INT, [*_SOURCES, POINTER, INT, SIZE, INT, POINTER, INT, WORD, POINTER]),
    "gather_keys": (INT, [*_SOURCES, POINTER, INT, SIZE, INT, POINTER, POINTER, WORD] + [POINTER] * 3),
    "count_shared": (INT, [*_SOURCES, POINTER, INT, SIZE, WORD, POINTER]),
    "variance": (None, [*_SOURCES, SIZE, POINTER]),
    "norms": (INT, [*_SOURCES, POINTER, INT, POINTER, INT, SIZE, POINTER]),
    "mix": (INT, [*_SOURCES, POINTER, INT] + [POINTER] * 4 + [INT, INT, INT, DOUBLE, SIZE, POINTER, INT]),
    "scores": (INT, [*_SOURCES, POINTER, INT, POINTER, POINTER, SIZE, POINTER]),
    "compete": (INT, [*_SOURCES, POINTER, INT, POINTER, POINTER, DOUBLE, SIZE, POINTER, INT]),
    "divergences": (INT, [POINTER, INT, POINTER, INT, SIZE, SIZE, POINTER]),
    "importances": (None, [POINTER, INT, POINTER, INT, POINTER, SIZE, SIZE, POINTER]),
    "take_important": (INT, [POINTER, INT, POINTER, INT, POINTER, SIZE, FLOAT, SIZE, POINTER, INT]),
    "checksum": (None, [POINTER, SIZE, POINTER]),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Returns the compiled kernels, or None where there are none."""
    kernels = native_library()
    if kernels is not None:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(kernels, f"merge_models_{name}")
            function.restype, function.argtypes = result, arguments
    return kernels


def library_for(*spans: Span | None) -> ctypes.CDLL | None:
    """Returns the compiled kernels, where they read all of these."""
    fits = all(span is None or span.dtype.code in NATIVE_TYPES for span in spans)
    return library() if fits else None


def sources(spans: Sequence[Span]):
    """Returns the arguments that tell a kernel of its sources: how many, where, and of which types."""
    return len(spans), addresses([span.data for span in spans]), (INT * len(spans))(*map(type_of, spans))


def place(span: Span | None):
    """Returns the arguments that tell a kernel of one source, or of none: where, and of which type."""
    return (None, 0) if span is None else (address_of(span.data), type_of(span))


def type_of(span: Span) -> int:
    return NATIVE_TYPES[span.dtype.code]


def addresses(arrays: Sequence[np.ndarray]):
    return (POINTER * len(arrays))(*[address_of(array) for array in arrays])


def check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for a block kernel's scratch tiles")
