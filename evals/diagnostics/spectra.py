"""How many dimensions a spectrum fills: four numbers between 1 and the rank, all free of scale.

For the same centred data, stable_rank <= participation_ratio <= effective_rank_variance <= effective_rank:
they are exponentials of Renyi entropies (of order infinity, 2 and 1) of the shares of variance, the last of
the shares of standard deviation. None of them sees a spectrum that shrinks as a whole: read them with a
variance beside them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def effective_rank(singular_values: ArrayLike) -> float | None:
    """Returns exp of the entropy of the normalised singular values (Roy and Vetterli 2007).

    Args:
        singular_values: [k], nonnegative, any order and scale.

    Returns:
        A number from 1 to the rank; None for an empty or zero spectrum, or one that is not finite.
    """
    return _exp_entropy(_shares(singular_values))


def effective_rank_variance(eigenvalues: ArrayLike) -> float | None:
    """Returns exp of the entropy of the normalised eigenvalues of a covariance: never above
    ``effective_rank``.

    Args:
        eigenvalues: [k], squares of singular values up to a factor; what rounding made negative counts as 0.
    """
    return _exp_entropy(_shares(eigenvalues))


def participation_ratio(eigenvalues: ArrayLike) -> float | None:
    """Returns (sum l)^2 / sum l^2 of a covariance's eigenvalues."""
    shares = _shares(eigenvalues)
    return None if shares is None else float(1 / np.square(shares).sum())


def stable_rank(eigenvalues: ArrayLike) -> float | None:
    """Returns sum l / max l: the squared Frobenius norm over the squared spectral norm."""
    shares = _shares(eigenvalues)
    return None if shares is None else float(1 / shares.max())


def singular_values_of(eigenvalues: ArrayLike) -> np.ndarray:
    """Returns square roots of a Gram matrix's eigenvalues, less those that are only rounding.

    A Gram matrix squares the spectrum: eigenvalues below ``k * eps`` of the largest (float64) are rounding
    errors, whose square roots would pretend to be singular values of 1e-7 of the largest. They count as 0.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    if not values.size or not np.isfinite(values).all():
        return np.sqrt(values)
    floor = values.size * np.finfo(np.float64).eps * max(float(values.max()), 0.0)
    return np.sqrt(np.where(values > floor, values, 0.0))


def _shares(spectrum: ArrayLike) -> np.ndarray | None:
    values = np.asarray(spectrum, dtype=np.float64).reshape(-1)
    if not values.size or not np.isfinite(values).all():
        return None
    values = np.maximum(values, 0.0)
    top = values.max()
    if top == 0:
        return None
    values = values / top  # a spectrum near the largest or smallest float has a sum too
    return values / values.sum()


def _exp_entropy(shares: np.ndarray | None) -> float | None:
    if shares is None:
        return None
    positive = shares[shares > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
