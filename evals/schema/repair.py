"""What a repair changed."""

from __future__ import annotations

from merge_models.evals.diagnostics.record import Record
from merge_models.evals.schema.activations import Calibration


class LayerRepair(Record):
    """One repaired module: variance ratio to the parents before and after."""

    module: str
    layer: int | None
    variance_ratio_before: float | None
    variance_ratio_after: float | None
    folded_into: tuple[str, ...]


class RepairReport(Record):
    """What a repair changed.

    Attributes:
        layers: the repaired modules, in order.
        loss_before, loss_after: next-token loss on held-out calibration text, nats (None where there is
        none).
    """

    layers: tuple[LayerRepair, ...]
    loss_before: float | None = None
    loss_after: float | None = None
    calibration: Calibration | None = None
