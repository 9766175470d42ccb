"""The Jensen-Shannon divergence between predictions: symmetric, and bounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merge_models.evals.diagnostics.diagnostic import REQUIRED, Diagnostic, Field
from merge_models.evals.diagnostics.drawing import DotOfEachModel
from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.record import Estimate

if TYPE_CHECKING:
    from torch import Tensor


def js(p: Distributions, q: Distributions) -> Tensor:
    """Returns the Jensen-Shannon divergence of each row, nats, from 0 to ln 2, [n].

    With d = log q - log p the mixture m has log m = log p + log((1 + e^d) / 2); the last term is taken as
    log1p(expm1(-|d|) / 2) + max(d, 0), which does not cancel for small d.
    """
    difference = q.log - p.log
    above = difference.abs().neg_().expm1_().div_(2).log1p_().add_(difference.clamp_min(0))
    total = q.mean(difference - above) - p.mean(above)
    return (total / 2).clamp(0, math.log(2))


JS = Diagnostic(
    key="js",
    label="JS",
    definition="Jensen-Shannon divergence of the next-token distributions, in nats; at most ln 2 = 0.693.",
    unit="nats",
    depth="activations",
    fields=(Field("js", "Jensen-Shannon, nats (at most ln 2).", ("divergence",), Estimate, REQUIRED),),
    measure=js,
    drawing=DotOfEachModel(
        "JS divergence", "Jensen-Shannon, nats", reference=("parents_js", "between parents")
    ),
)
