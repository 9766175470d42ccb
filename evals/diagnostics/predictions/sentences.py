"""Vectors of sentences, of encoders: how far the merge's are from another model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merge_models.evals.diagnostics.diagnostic import REQUIRED, Diagnostic, Field
from merge_models.evals.diagnostics.record import Estimate

if TYPE_CHECKING:
    from torch import Tensor


def cosine(merged: Tensor, other: Tensor) -> Tensor:
    """Returns the cosine of each sentence's two unit vectors, [sentences], from [sentences, width]."""
    return (merged * other).sum(1)


def same_neighbour(merged: Tensor, other: Tensor) -> Tensor:
    """Returns 1 for each sentence whose most similar other sentence is the same to both models, else 0."""
    return (_nearest(merged) == _nearest(other)).double()


def _nearest(units: Tensor) -> Tensor:
    return (units @ units.T).fill_diagonal_(-float("inf")).argmax(1)


SENTENCE_COSINE = Diagnostic(
    key="cosine",
    label="Mean cosine",
    definition="Mean over sentences of the cosine between both models' vectors of a sentence.",
    unit="cosine",
    depth="activations",
    fields=(
        Field(
            "cosine",
            "Mean over sentences of the cosine between both models' vectors.",
            ("sentence",),
            Estimate,
            REQUIRED,
        ),
    ),
    measure=cosine,
)

NEIGHBOUR_AGREEMENT = Diagnostic(
    key="neighbour_agreement",
    label="Same nearest neighbour",
    definition="Share of sentences whose most similar other sentence is the same to both models.",
    unit="share",
    depth="activations",
    fields=(
        Field(
            "neighbour_agreement",
            "Share of sentences whose most similar other sentence is the same to both.",
            ("sentence",),
            Estimate,
            REQUIRED,
        ),
    ),
    measure=same_neighbour,
)
