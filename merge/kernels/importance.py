"""The block kernels of important changes: divergences of runs, importances of elements, and what takes them.

A run is the elements along a tensor's last dimension. Compiled where possible; the torch versions
(torch_importance.py) give the same bytes, and serve float64 storage.
"""

from __future__ import annotations

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span, address_of
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.blocks import NATIVE_TARGETS
from merge_models.merge.kernels.compiled import place, type_of


def divergences(parent: Span, base: Span, length: int) -> np.ndarray:
    """Returns ``KL(softmax(parent) + 1e-8 || softmax(base) + 1e-8)`` of each run, to about 1e-14 of itself.

    Args:
        parent: whole runs.
        base: the same part of the base.
        length: elements of a run.

    Returns:
        float64 ``[runs]``; 0 where parent and base differ by a constant, NaN where a source is NaN or +Inf.
    """
    library = compiled.library_for(parent, base)
    if library is None:
        from merge_models.merge.kernels import torch_importance

        return torch_importance.divergences(parent, base, length)
    out = np.empty(base.count // length)
    compiled.check(
        library.merge_models_divergences(
            *place(parent), *place(base), out.size, length, address_of(out)
        )
    )  # fmt: skip
    return out


def importances(parent: Span, base: Span, divergence: np.ndarray, length: int) -> Span:
    """Returns the size of each change, ``|parent - base|``, times its run's divergence: float32.

    Args:
        parent: elements from the beginning of a run on.
        base: the same part of the base.
        divergence: float64, of each run.
        length: elements of a run.
    """
    library = compiled.library_for(parent, base)
    if library is None:
        from merge_models.merge.kernels import torch_importance

        return Span.of(torch_importance.importances(parent, base, divergence, length))
    out = Span(np.empty(4 * base.count, np.uint8), BY_CODE["F32"])
    library.merge_models_importances(
        *place(parent), *place(base), address_of(divergence), length, base.count, address_of(out.data)
    )
    return out


def take_important(
    parent: Span, base: Span, divergence: np.ndarray, length: int, threshold: float, out: Span
) -> int:
    """Writes the parent into ``out`` where its change is important enough, else the base.

    Args:
        parent, base, divergence, length: as for :func:`importances`.
        threshold: from which importance on changes are taken, rounded to float32.
        out: as many elements as the base has.

    Returns:
        ``NOT_FINITE`` where a source is NaN or Inf, ``OVERFLOW`` where only what is written is, else 0.
    """
    library = compiled.library_for(parent, base)
    if library is None or out.dtype.code not in NATIVE_TARGETS:
        from merge_models.merge.kernels import torch_importance

        return torch_importance.take_important(parent, base, divergence, length, threshold, out)
    flags = library.merge_models_take_important(
        *place(parent), *place(base), address_of(divergence), length, threshold, base.count,
        address_of(out.data), type_of(out),
    )  # fmt: skip
    return NOT_FINITE if flags & 1 else OVERFLOW if flags else 0
