"""Hyperspherical energy: how evenly the neurons of a layer point in all directions (Liu et al. 2018)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RATIO, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase, over_parents

if TYPE_CHECKING:
    from torch import Tensor

NEURONS = 128
NEAREST = 1e-3
"""Distance below which two neurons count as this far apart: copies are dear, but their energy is finite."""


def hyperspherical_energy(neurons: Tensor) -> float | None:
    """Returns the mean over pairs of rows of ``1 / |u - v|``, u and v their unit vectors (order s = 1).

    Random directions in many dimensions give 1 / sqrt(2) = 0.707; a common rotation or scale of the rows
    changes nothing. Zero rows have no direction and are left out.

    Args:
        neurons: [rows, columns] float64; rows are output units.

    Returns:
        None where fewer than two rows are left, or a value is not finite.
    """
    import torch

    if not bool(torch.isfinite(neurons).all()):
        return None
    columns = neurons.shape[1]
    top = neurons.abs().amax(dim=1, keepdim=True) if columns else torch.zeros(len(neurons), 1)
    neurons = neurons[top[:, 0] > 0] / top[top[:, 0] > 0]
    if len(neurons) < 2:
        return None
    units = neurons / neurons.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(units), len(units), 1)
    cosine = (units @ units.T)[first, second]
    distance = (2 - 2 * cosine).clamp_min(NEAREST**2).sqrt()
    energy = float((1 / distance).mean())
    return energy if math.isfinite(energy) else None


def _energy(case: WeightCase) -> dict[str, Any]:
    if case.norms[-1] is None:
        return {}
    energies = [hyperspherical_energy(rows) for rows in case.rows(NEURONS)]
    return {
        "hyperspherical_energy": energies[-1],
        "hyperspherical_energy_ratio": over_parents(case, energies),
    }


HYPERSPHERICAL_ENERGY = Diagnostic(
    key="hyperspherical_energy_ratio",
    label="Hyperspherical energy",
    definition=(
        "Mean inverse distance between pairs of unit-length rows, merge over the parents' mean: how evenly"
        " neurons' directions spread."
    ),
    unit="ratio",
    depth="weights",
    fields=(
        Field(
            "hyperspherical_energy",
            "Mean over sampled pairs of rows of the inverse distance of their unit vectors.",
            ("tensor",),
        ),
        Field("hyperspherical_energy_ratio", "Energy over the parents' mean.", ("tensor", "layer")),
    ),
    measure=_energy,
    needs=frozenset({"merge", "matrix"}),
    drawing=HeatMap(RATIO),
)
