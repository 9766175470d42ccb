"""What each model makes of the text itself: how sure it is, and how right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.record import Estimate

if TYPE_CHECKING:
    from torch import Tensor


def entropy(p: Distributions, labels: Tensor | None = None) -> Tensor:
    """Returns the entropy of each row, nats, [n]."""
    del labels
    return -p.mean(p.log)


def loss(p: Distributions, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of what followed, nats, [n]."""
    return -p.log.gather(-1, labels[:, None]).squeeze(-1).double()


ENTROPY = Diagnostic(
    key="entropy",
    label="Entropy",
    definition="Mean entropy of the next-token distributions on the calibration text, in nats.",
    unit="nats",
    depth="activations",
    fields=(
        Field(
            "entropy",
            "Mean entropy of the next-token distributions, nats, by model name.",
            ("head",),
            dict[str, Estimate],
            {},
        ),
    ),
    measure=entropy,
    card=False,
)

LOSS = Diagnostic(
    key="loss",
    label="Loss",
    definition="Mean next-token cross-entropy on the calibration text, in nats.",
    unit="nats",
    depth="activations",
    fields=(
        Field(
            "loss",
            "Mean next-token cross-entropy on the calibration text, nats, by model name.",
            ("head",),
            dict[str, Estimate],
            {},
        ),
        Field(
            "loss_by_domain",
            "The loss on each domain of the text, by model name, then domain.",
            ("head",),
            dict[str, dict[str, float]],
            {},
        ),
    ),
    measure=loss,
    needs=frozenset({"labels"}),
    first=True,
)
