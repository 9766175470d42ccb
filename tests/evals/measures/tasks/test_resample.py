"""Intervals of scores, and recovery of a gain."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.evals.measures.tasks.resample import Marks, recovery, wilson
from tests.evals.measures.tasks.models import items


def test_wilson_interval_is_the_textbook_one() -> None:
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson(1.0, 60)[0] == pytest.approx(60 / (60 + 1.959964**2), abs=1e-6)
    assert wilson(0.0, 10)[0] == 0.0 and wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_recovery_is_the_share_of_the_gain() -> None:
    best, base = items(*[1.0] * 90 + [0.0] * 10), items(*[0.0] * 90 + [1.0] * 10)
    for share in (0.0, 0.5, 1.0):
        merge = items(*[float(i < 10 + share * 80) for i in range(100)])
        kept = recovery(merge, best, base, seed=0)
        assert kept is not None and kept.low is not None and kept.high is not None
        assert kept.value == pytest.approx(share)
        assert kept.low <= kept.value <= kept.high and kept.high - kept.low < 0.5


def test_recovery_of_perplexity_is_on_the_log_scale() -> None:
    count = np.full(40, 64.0)
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    best, base, merge = (
        Marks((mean + noise) * 64, count, "perplexity", higher_is_better=False) for mean in (2.0, 4.0, 3.0)
    )
    kept = recovery(merge, best, base, seed=0)
    assert kept is not None and kept.value == pytest.approx(0.5)
    assert float(base.value()) == pytest.approx(np.exp(4.0 + noise.mean()))


def test_no_recovery_is_told_of_a_gain_that_is_chance() -> None:
    rng = np.random.default_rng(0)
    one, other = items(*rng.integers(0, 2, 30)), items(*rng.integers(0, 2, 30))
    better, worse = sorted((one, other), key=lambda m: -float(m.value()))
    assert recovery(one, better, worse, seed=0) is None
    assert recovery(one, one, one, seed=0) is None
