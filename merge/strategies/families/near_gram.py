"""Gram data of one tensor's points in numpy: what a survey's moments say, without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NearGram:
    """Inner products of a reference r and differences ``d_i = x_i - r`` of one tensor's N points.

    Attributes:
        reference: ``|r|^2``.
        cross: ``<r, d_i>``, float64 ``[N]``.
        differences: ``<d_i, d_j>``, float64 ``[N, N]``.
    """

    reference: float
    cross: np.ndarray
    differences: np.ndarray

    @staticmethod
    def unpacked(moments: np.ndarray, count: int, has_base: bool) -> NearGram:
        """Returns from :func:`merge_models.merge.kernels.blocks.gram_moments`; without a base the first
        parent is the reference, at difference 0."""
        measured = count if has_base else count - 1
        first = count - measured
        cross, differences = np.zeros(count), np.zeros((count, count))
        cross[first:] = moments[1 : 1 + measured]
        rows, columns = np.triu_indices(measured)
        differences[rows + first, columns + first] = moments[1 + measured :]
        differences[columns + first, rows + first] = moments[1 + measured :]
        return NearGram(float(moments[0]), cross, differences)

    def about_reference(self) -> NearGram:
        """Returns the differences as the points."""
        return NearGram(0.0, np.zeros_like(self.cross), self.differences)
