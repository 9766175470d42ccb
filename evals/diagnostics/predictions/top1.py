"""Whether merge and parent would say the same next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge_models.evals.diagnostics.diagnostic import REQUIRED, Diagnostic, Field
from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.record import Estimate

if TYPE_CHECKING:
    from torch import Tensor


def agreement(p: Distributions, q: Distributions) -> Tensor:
    """Returns whether the most likely token is the same, 1 or 0, [n]."""
    return (p.log.argmax(-1) == q.log.argmax(-1)).double()


TOP1_AGREEMENT = Diagnostic(
    key="top1_agreement",
    label="Top-1 agreement",
    definition="Share of tokens at which both most likely tokens agree.",
    unit="share",
    depth="activations",
    fields=(
        Field(
            "top1_agreement",
            "Share of tokens at which both most likely tokens agree.",
            ("divergence",),
            Estimate,
            REQUIRED,
        ),
    ),
    measure=agreement,
)
