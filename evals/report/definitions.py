"""What every number in a report is: one place for labels, definitions and how to read them."""

from __future__ import annotations

from typing import NamedTuple


class Definition(NamedTuple):
    """A quantity's short label and its definition in a sentence or two."""

    label: str
    text: str


DEFINITIONS: dict[str, Definition] = {
    "variance_ratio": Definition(
        "Variance ratio",
        "Variance over tokens of each unit of the merge, over the parents' weighted mean variance of "
        "that unit; the median over units. 1: as the parents. Below 1: activations shrink, which "
        "compounds with depth (Jordan et al. 2023). Bands show each parent's mean variance over the same "
        "weighted mean.",
    ),
    "effective_rank_ratio": Definition(
        "Effective-rank ratio",
        "The exponential of the entropy of the normalised singular values of the centred activations "
        "(Roy and Vetterli 2007), merge over the parents' weighted mean. How many directions carry the "
        "signal; blind to its size.",
    ),
    "cka": Definition(
        "CKA",
        "Linear centred kernel alignment of the merge's activations with a parent's on the same tokens, "
        "debiased where the width exceeds the samples. 1: the same geometry up to rotation and scale.",
    ),
    "drift": Definition(
        "Drift",
        "Mean over tokens of the distance between the merge's and a parent's activations over the length "
        "of the parent's. 0: the same.",
    ),
    "kl": Definition(
        "KL divergence",
        "KL(parent || merge) of the next-token distributions over the tokens that all models have, in nats, "
        "mean over tokens. 0: the same predictions.",
    ),
    "js": Definition(
        "JS divergence",
        "Jensen-Shannon divergence of the next-token distributions, in nats; at most ln 2 = 0.693.",
    ),
    "fisher_rao": Definition(
        "Fisher-Rao distance",
        "Angle 2 arccos(sum sqrt(p q)) between next-token distributions, in radians; at most pi.",
    ),
    "top1_agreement": Definition(
        "Top-1 agreement",
        "Share of tokens at which both most likely tokens agree.",
    ),
    "loss": Definition(
        "Loss",
        "Mean next-token cross-entropy on the calibration text, in nats.",
    ),
    "norm_ratio": Definition(
        "Norm",
        "Frobenius norm of the merged tensor over the parents' mean norm.",
    ),
    "delta_norm_ratio": Definition(
        "Delta norm",
        "Norm of merge minus base over the mean norm of parents minus base.",
    ),
    "spectral_norm_ratio": Definition(
        "Spectral norm",
        "Largest singular value of the merged tensor over the parents' mean.",
    ),
    "stable_rank_ratio": Definition(
        "Stable rank",
        "Squared Frobenius norm over squared spectral norm, merge over the parents' mean.",
    ),
    "weight_effective_rank_ratio": Definition(
        "Effective rank",
        "The exponential of the entropy of a tensor's normalised singular values, merge over parents' mean.",
    ),
    "delta_effective_rank_ratio": Definition(
        "Effective rank of the delta",
        "The same of merge minus base, over the mean of the parents' deltas.",
    ),
    "hyperspherical_energy_ratio": Definition(
        "Hyperspherical energy",
        "Mean inverse distance between pairs of unit-length rows, merge over the parents' mean: how "
        "evenly neurons' directions spread.",
    ),
    "sign_conflict": Definition(
        "Sign conflict",
        "Share of the coordinates with at least two nonzero parent deltas whose deltas differ in sign. "
        "Unrelated deltas of two parents give 0.5.",
    ),
    "subspace_overlap": Definition(
        "Subspace overlap",
        "Overlap of the parents' leading singular spaces, less the overlap that chance gives. 0: unrelated.",
    ),
    "effective_parents": Definition(
        "Effective parents",
        "The exponential of the entropy of the parents' shares in the merged tensor: from 1 (one parent) "
        "to N (all alike).",
    ),
    "unexplained": Definition(
        "Outside the parents' span",
        "Share of the merged tensor's squared norm that no mixture of parents gives.",
    ),
    "o_information": Definition(
        "O-information",
        "Total correlation less dual total correlation (Rosas et al. 2019) by Gaussian copula, bias "
        "corrected, in nats. Positive: redundant. Negative: synergistic. The band is the shuffle null, "
        "mean and two deviations.",
    ),
    "recovery": Definition(
        "Recovery",
        "(merge - reference) / (best parent - reference), where the reference is the base or, without "
        "one, the worst parent. 1: the best parent's skill is kept whole. The mean never stands without "
        "the minimum.",
    ),
    "generation": Definition(
        "Degenerate text",
        "Share of greedy continuations that are empty, that loop (a trigram three times, or a word three "
        "times running) or whose distinct-2 (unique bigrams over bigrams) is under 0.5.",
    ),
    "repair": Definition(
        "Repair",
        "Each unit's activation scale is reset to the parents' weighted mean and folded into the "
        "weights, layer by layer (REPAIR, Jordan et al. 2023).",
    ),
    "score": Definition(
        "Score",
        "Share of what the parents know that the merge lost: on each domain, KL from the parent that "
        "knows it best, over what that parent saves against guessing by frequency; mean over the domains "
        "that a parent knows. 0: as the best parent; 1: as much lost as there was to know. Where models "
        "predict no tokens, or no parent knows the text, it is the drift: the largest distance from the "
        "parents' residual streams over their norms, parents' mean.",
    ),
}
