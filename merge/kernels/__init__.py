"""The block kernels, straight from storage bytes: those of span strategies here, the others in task_vectors.

All work in double precision whatever the storage dtype, and round once, to nearest even (as torch
converts a float64 result). The compiled kernels read each block once; where they could not be built, the
torch ones compute the same, to the bit, more slowly (Gram moments: to rounding; torch sums in another order).
"""

from __future__ import annotations

from merge_models.merge.kernels.blocks import gram_moments, is_finite, native_name, weighted_sum

__all__ = ["gram_moments", "is_finite", "native_name", "weighted_sum"]
