"""The Fisher-Rao distance between predictions: an angle on the sphere of square roots of probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merge_models.evals.diagnostics.diagnostic import REQUIRED, Diagnostic, Field
from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.record import Estimate

if TYPE_CHECKING:
    from torch import Tensor


def fisher_rao(p: Distributions, q: Distributions) -> Tensor:
    """Returns 2 arccos(sum sqrt(p q)) of each row, from 0 to pi, [n].

    Taken as 4 arcsin(||sqrt p - sqrt q|| / 2): arccos would lose half of the digits near 1.
    """
    import torch

    chord = (p.root - q.root).square_().sum(-1, dtype=torch.float64).sqrt()
    return 4 * torch.asin((chord / 2).clamp(max=math.sqrt(0.5)))


FISHER_RAO = Diagnostic(
    key="fisher_rao",
    label="Fisher-Rao",
    definition="Angle 2 arccos(sum sqrt(p q)) between next-token distributions, in radians; at most pi.",
    unit="radians",
    depth="activations",
    fields=(
        Field(
            "fisher_rao",
            "The angle 2 arccos(sum sqrt(p q)), at most pi.",
            ("divergence",),
            Estimate,
            REQUIRED,
        ),
    ),
    measure=fisher_rao,
    card=False,
)
