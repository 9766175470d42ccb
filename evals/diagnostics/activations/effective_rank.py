"""Effective rank of activations: how many directions carry the signal."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.activations.case import SiteCase, StatisticsCase, weighted
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RatioByDepth
from merge_models.evals.diagnostics.record import Estimate
from merge_models.evals.diagnostics.spectra import (
    effective_rank,
    effective_rank_variance,
    singular_values_of,
)


def _rank(case: StatisticsCase) -> dict[str, Any]:
    return {"effective_rank": effective_rank(singular_values_of(case.eigenvalues))}


def _rank_of_variance(case: StatisticsCase) -> dict[str, Any]:
    return {"effective_rank_variance": effective_rank_variance(case.eigenvalues)}


def _ratio(case: SiteCase) -> dict[str, Any]:
    merge, ranks = case.merge.effective_rank, [one.effective_rank for one in case.parents]
    if merge is None or None in ranks:
        return {}
    drawn = case.effective_ranks()
    again = None if drawn is None else drawn[0] / weighted(case.weights, drawn[1])
    return {"effective_rank_ratio": case.estimate(merge / weighted(case.weights, ranks), again)}


EFFECTIVE_RANK = Diagnostic(
    key="effective_rank",
    label="Effective rank (singular values)",
    definition="The exponential of the entropy of the normalised singular values of the centred activations.",
    unit="dimensions",
    depth="activations",
    fields=(Field("effective_rank", "exp entropy of the normalised singular values.", ("statistics",)),),
    measure=_rank,
)

EFFECTIVE_RANK_VARIANCE = Diagnostic(
    key="effective_rank_variance",
    label="Effective rank (eigenvalues)",
    definition=(
        "The exponential of the entropy of the normalised eigenvalues of the covariance: never above that"
        " of the singular values."
    ),
    unit="dimensions",
    depth="activations",
    fields=(
        Field(
            "effective_rank_variance",
            "exp entropy of the eigenvalues of the covariance (a smaller number).",
            ("statistics",),
        ),
    ),
    measure=_rank_of_variance,
)

EFFECTIVE_RANK_RATIO = Diagnostic(
    key="effective_rank_ratio",
    label="Effective-rank ratio",
    definition=(
        "The exponential of the entropy of the normalised singular values of the centred activations (Roy"
        " and Vetterli 2007), merge over the parents' weighted mean. How many directions carry the signal;"
        " blind to its size."
    ),
    unit="ratio",
    depth="activations",
    fields=(
        Field(
            "effective_rank_ratio",
            "Merge over the parents' weighted mean, of `effective_rank`.",
            ("site",),
            Estimate | None,
        ),
    ),
    measure=_ratio,
    needs=frozenset({"finite"}),
    drawing=RatioByDepth("Effective rank of activations", "rank", "effective_rank", "rank collapse"),
    first=True,
)
