"""Scores with 95 % intervals, and how much of a gain was kept: resampling what was scored, in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from merge_models.evals.schema import Estimate

ROUNDS = 1000
_Z = 1.959963984540054
LEAST_GAIN = {"perplexity": 0.01}
"""Gains that are above chance, but no larger than this, are none (perplexity: of its logarithm, in nats)."""


@dataclass(frozen=True)
class Marks:
    """What one model got, unit by unit; units are the same for all models.

    Attributes:
        total: summed over a unit: negative log-likelihood in nats, or right answers; float64 [units].
        count: tokens or items of the unit; float64 [units].
        metric: ``perplexity`` is exp(total / count), every other is total / count.
        higher_is_better: which way the score goes.
    """

    total: np.ndarray
    count: np.ndarray
    metric: str
    higher_is_better: bool = True

    @property
    def finite(self) -> bool:
        """Whether a score can be told from it."""
        return bool(np.isfinite(self.value()))

    def value(self, drawn: np.ndarray | None = None) -> np.ndarray:
        """Returns the score, or one score for each row of drawn units [rounds, units]."""
        mean = self._mean(drawn)
        with np.errstate(over="ignore"):
            return np.exp(mean) if self.metric == "perplexity" else mean

    def level(self, drawn: np.ndarray | None = None) -> np.ndarray:
        """Returns the mean on which gains are compared, more being better: for perplexity, minus its
        logarithm."""
        return self._mean(drawn) if self.higher_is_better else -self._mean(drawn)

    def estimate(self, seed: int) -> Estimate:
        """Returns the score and its interval: Wilson's for shares of right answers, else the bootstrap over
        units.

        Wilson's interval stays honest where all answers are right, which no resampling can.
        """
        value = float(self.value())
        if bool(((self.total >= 0) & (self.total <= self.count)).all()) and self.metric != "perplexity":
            low, high = wilson(value, float(self.count.sum()))
        else:
            low, high = _percentiles(self.value(_draw(len(self.total), seed)))
        return Estimate(value=value, low=min(low, value), high=max(high, value))

    def _mean(self, drawn: np.ndarray | None) -> np.ndarray:
        if drawn is None:
            return self.total.sum() / self.count.sum()
        return self.total[drawn].sum(1) / self.count[drawn].sum(1)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Returns Wilson's (1927) 95 % score interval of a share of ``n``."""
    middle = share + _Z**2 / (2 * n)
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
    scale = 1 + _Z**2 / n
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def recovery(merge: Marks, best: Marks, reference: Marks, seed: int) -> Estimate | None:
    """Returns (merge - reference) / (best - reference) on the scale of ``Marks.level``, with its paired
    interval.

    None where the best parent does not beat the reference beyond chance (the paired 95 % interval of its gain
    reaches zero) or by ``LEAST_GAIN``: the fraction of no gain is noise over noise.
    """
    gain = float(best.level() - reference.level())
    drawn = _draw(len(merge.total), seed)
    gains = best.level(drawn) - reference.level(drawn)
    if gain <= LEAST_GAIN.get(merge.metric, 0.0) or _percentiles(gains)[0] <= 0:
        return None
    kept = merge.level(drawn) - reference.level(drawn)
    low, high = _percentiles(kept[gains > 0] / gains[gains > 0])
    value = float(merge.level() - reference.level()) / gain
    return Estimate(value=value, low=min(low, value), high=max(high, value))


Role = Literal["best", "worst"]


def extreme(marks: Mapping[str, Marks], role: Role) -> str:
    """Returns the name with the best or worst score; the first of equals."""
    sign = 1.0 if role == "best" else -1.0
    return max(marks, key=lambda name: sign * float(marks[name].level()))


def _draw(units: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, units]).integers(0, units, (ROUNDS, units))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
