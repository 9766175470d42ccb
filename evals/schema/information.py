"""O-information."""

from __future__ import annotations

from typing import Literal

from merge_models.evals.diagnostics.record import Estimate, Record


class OInformation(Record):
    """O-information of a system of variables (or blocks), by Gaussian copula, in nats.

    Attributes:
        what: which system; ``layer``: where; ``variables``: how many blocks, ``dimensions``: how many
        columns in all.
        samples: T; refused (``refused`` says why and how many are needed) when T < 8 x dimensions.
        o_information: TC - DTC (Rosas et al. 2019), bias corrected; ``tc``, ``dtc``, ``s_information`` = TC
        + DTC.
        null: mean and standard deviation of the O-information of shuffled variables.
        reading: redundant, synergistic or indistinguishable from the null.
    """

    what: str
    layer: int | None
    variables: int
    dimensions: int
    samples: int
    refused: str | None = None
    o_information: Estimate | None = None
    tc: float | None = None
    dtc: float | None = None
    s_information: float | None = None
    null_mean: float | None = None
    null_std: float | None = None
    reading: Literal["redundant", "synergistic", "indistinguishable"] | None = None


class InformationDiagnosis(Record):
    """O-information between parents and merge (one system a layer) and within layers (one a layer and
    model)."""

    between: tuple[OInformation, ...] = ()
    within: dict[str, tuple[OInformation, ...]] = {}
