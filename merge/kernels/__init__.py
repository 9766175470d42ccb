"""The block kernels of span strategies: weighted sums and Gram moments, straight from storage bytes.

Both work in double precision whatever the storage dtype, and round once, to nearest even (as torch
converts a float64 result). The compiled kernels read each block once; where they could not be built, the
torch ones compute the same sums, to the bit, more slowly.
"""

from __future__ import annotations

from merge_models.merge.kernels.blocks import Span, gram_moments, native_name, weighted_sum

__all__ = ["Span", "gram_moments", "native_name", "weighted_sum"]
