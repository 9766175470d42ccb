"""The Kullback-Leibler divergence of the merge's predictions from another model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge_models.evals.diagnostics.diagnostic import REQUIRED, Diagnostic, Field
from merge_models.evals.diagnostics.drawing import DotOfEachModel
from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.record import Estimate

if TYPE_CHECKING:
    from torch import Tensor


def kl(p: Distributions, q: Distributions) -> Tensor:
    """Returns KL(p || q) of each row, nats, [n]."""
    return p.mean(p.log - q.log).clamp_min(0)


KL = Diagnostic(
    key="kl",
    label="KL to the merge",
    definition=(
        "KL(parent || merge) of the next-token distributions over the tokens that all models have, in nats,"
        " mean over tokens. 0: the same predictions."
    ),
    unit="nats",
    depth="activations",
    fields=(Field("kl", "KL(other || merge), nats.", ("divergence",), Estimate, REQUIRED),),
    measure=kl,
    drawing=DotOfEachModel("KL divergence", "KL(model || merge), nats"),
)
