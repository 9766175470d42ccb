"""The numbers that a verdict compares with, and where each comes from.

``python -m benchmarks.calibration`` measures them again: it makes real merges of small trained nets from
harmless to destroyed, and prints how score and causes agree with the measured loss.
"""

from __future__ import annotations

from dataclasses import dataclass

CALIBRATION = "calibrated on real merges of small trained nets, python -m benchmarks.calibration"


@dataclass(frozen=True)
class Thresholds:
    """Where healthy ends.

    Attributes:
        degraded, collapsed: of the score (see ``evals.score``), in shares of what the best parent knows.
        variance_low, variance_high: of the variance ratio to the parents' weighted mean, at any site.
        rank_low: of the effective rank ratio.
        drift_degraded, drift_collapsed: of the mean drift from the parents, where there are no predictions to
            compare.
        norm_low, norm_high: of the whole model's norm ratio.
        delta_norm_low: of the deltas' norm ratio under which averaging has faded the deltas (1 / sqrt(N) of
            unrelated ones is expected of a mean).
        delta_norm_gone: under which the merge is as good as the base, whatever faded the deltas.
        delta_norm_high: above which deltas were added up too strongly.
        foreign_delta: share of the squared change from the base outside the span of the parents' deltas, from
            which most of it is none of theirs.
        looping: rise of the share of degenerate continuations over the worst parent's.
        recovery_degraded, recovery_collapsed: of a task's recovery fraction.
        answers_least: lower end of the interval of a parent's exact answers, from which it has the skill.
        dominance: effective number of parents under which one parent makes the merge.
        foreign: least share of a text's unigram entropy that the best parent must save for the text to count.
    """

    degraded: float = 0.05
    collapsed: float = 0.4
    variance_low: float = 0.7
    variance_high: float = 1.6
    rank_low: float = 0.85
    drift_degraded: float = 0.4
    drift_collapsed: float = 0.8
    norm_low: float = 0.9
    norm_high: float = 1.1
    delta_norm_low: float = 0.6
    delta_norm_gone: float = 0.01
    delta_norm_high: float = 1.8
    foreign_delta: float = 0.5
    looping: float = 0.2
    recovery_degraded: float = 0.8
    recovery_collapsed: float = 0.3
    answers_least: float = 0.1
    dominance: float = 1.2
    foreign: float = 0.1


DEFAULT = Thresholds()
