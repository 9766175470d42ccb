"""Which tokens are kept, and how intervals are drawn: by sequence, for tokens of one sequence are alike."""

from __future__ import annotations

import numpy as np

MAX_GROUPS = 64
"""Sequences are resampled in at most so many groups; with more of them, a group holds several."""


def kept_positions(seed: int, sequence: int, tokens: int, count: int) -> np.ndarray:
    """Returns ``count`` places among a sequence's tokens: one at random in each of as many equal runs, in
    order.

    They depend on seed and sequence alone, so they are the same for every model and batch size.
    """
    if count >= tokens:
        return np.arange(tokens)
    jitter = np.random.default_rng([seed, sequence]).random(count)
    return ((np.arange(count) + jitter) * tokens / count).astype(np.int64)


def spread(count: int, among: int) -> np.ndarray:
    """Returns ``count`` numbers evenly spread over ``range(among)``; all of them where there are fewer."""
    if count >= among:
        return np.arange(among)
    return ((np.arange(count) + 0.5) * among / count).astype(np.int64)


def group_of(sequences: int) -> np.ndarray:
    """Returns the group of each sequence."""
    return np.arange(sequences) % min(max(sequences, 1), MAX_GROUPS)


def resamples(groups: int, count: int, seed: int) -> np.ndarray:
    """Draws a bootstrap: how often each group is drawn, [count, groups], float64; rows sum to ``groups``."""
    draw = np.random.default_rng([seed, groups])
    return draw.multinomial(groups, np.full(groups, 1 / groups), size=count).astype(np.float64)


def interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Returns 2.5 % and 97.5 % points of resampled values; none where they are not all finite, or too few."""
    if values.size < 2 or not np.isfinite(values).all():
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
