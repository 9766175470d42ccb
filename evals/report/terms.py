"""What reports speak of besides single diagnostics: quantities that are put together from several."""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """A quantity's short label and its definition in a sentence or two."""

    label: str
    definition: str


O_INFORMATION = Term(
    "O-information",
    "Total correlation less dual total correlation (Rosas et al. 2019) by Gaussian copula, bias"
    " corrected, in nats. Positive: redundant. Negative: synergistic. The band is the shuffle null,"
    " mean and two deviations.",
)

RECOVERY = Term(
    "Recovery",
    "(merge - reference) / (best parent - reference), where the reference is the base or, without"
    " one, the worst parent. 1: the best parent's skill is kept whole. The mean never stands without"
    " the minimum.",
)

GENERATION = Term(
    "Degenerate text",
    "Share of greedy continuations that are empty, that loop (a trigram three times, or a word three"
    " times running) or whose distinct-2 (unique bigrams over bigrams) is under 0.5.",
)

REPAIR = Term(
    "Repair",
    "Each unit's activation scale is reset to the parents' weighted mean and folded into the weights,"
    " layer by layer (REPAIR, Jordan et al. 2023).",
)

SCORE = Term(
    "Score",
    "Share of what the parents know that the merge lost: on each domain, KL from the parent that"
    " knows it best, over what that parent saves against guessing by frequency; mean over the domains"
    " that a parent knows. 0: as the best parent; 1: as much lost as there was to know. Where models"
    " predict no tokens, or no parent knows the text, it is the drift: the largest distance from the"
    " parents' residual streams over their norms, parents' mean.",
)
