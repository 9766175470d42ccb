"""Hyperspherical energy: how evenly the neurons of a layer point in all directions (Liu et al. 2018)."""

from __future__ import annotations

import math

import numpy as np
import torch

from merge_models.evals.measures.weights.blocks import read_flat, scratch
from merge_models.evals.measures.weights.family import Stored

NEURONS = 128
NEAREST = 1e-3
"""Distance below which two neurons count as this far apart: copies are dear, but their energy is finite."""


def sample_rows(rows: int, seed: int) -> np.ndarray:
    """Up to ``NEURONS`` row numbers, rising; the same for every model."""
    if rows <= NEURONS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, NEURONS, replace=False))


def hyperspherical_energy(tensor: Stored, rows: np.ndarray) -> float | None:
    """Mean over pairs of rows of ``1 / |u - v|``, u and v their unit vectors (order s = 1).

    Rows are neurons (output units). Random directions in many dimensions give 1 / sqrt(2) = 0.707; a common
    rotation or scale of the rows changes nothing. Zero rows have no direction and are left out; None where
    fewer than two are left, or a value is not finite.
    """
    columns = tensor.info.count // tensor.info.shape[0]
    neurons = torch.empty(len(rows), columns, dtype=torch.float64)
    (buffer,) = scratch([tensor], columns)
    for out, row in zip(neurons, rows, strict=True):
        out.copy_(read_flat(tensor, int(row) * columns, (int(row) + 1) * columns, buffer))
    if not bool(torch.isfinite(neurons).all()):
        return None
    top = neurons.abs().amax(dim=1, keepdim=True) if columns else torch.zeros(len(rows), 1)
    neurons = neurons[top[:, 0] > 0] / top[top[:, 0] > 0]
    if len(neurons) < 2:
        return None
    units = neurons / neurons.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(units), len(units), 1)
    cosine = (units @ units.T)[first, second]
    distance = (2 - 2 * cosine).clamp_min(NEAREST**2).sqrt()
    energy = float((1 / distance).mean())
    return energy if math.isfinite(energy) else None
