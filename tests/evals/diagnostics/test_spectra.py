"""Ranks of spectra: known answers, order, scale, and numpy's singular values."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.evals.diagnostics.spectra import (
    effective_rank,
    effective_rank_variance,
    participation_ratio,
    singular_values_of,
    stable_rank,
)

ALL = (effective_rank, effective_rank_variance, participation_ratio, stable_rank)


@pytest.mark.parametrize("rank", ALL)
@pytest.mark.parametrize("scale", [1.0, 1e-160, 1e160])
def test_a_flat_spectrum_fills_its_dimensions_at_any_scale(rank, scale: float) -> None:
    assert rank(scale * np.ones(7)) == pytest.approx(7)
    assert rank([scale, 0.0, 0.0]) == pytest.approx(1)


@pytest.mark.parametrize("rank", ALL)
@pytest.mark.parametrize("spectrum", [[], [0.0, 0.0], [1.0, np.nan], [np.inf, 1.0]])
def test_what_has_no_rank_is_none(rank, spectrum: list[float]) -> None:
    assert rank(spectrum) is None


def test_worked_numbers() -> None:
    """Singular values 3 and 1: shares 3/4, 1/4 and, of variance, 9/10, 1/10."""
    assert effective_rank([3, 1]) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    assert effective_rank_variance([9, 1]) == pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)))
    assert participation_ratio([9, 1]) == pytest.approx(100 / 82)
    assert stable_rank([9, 1]) == pytest.approx(10 / 9)


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_four(seed: int) -> None:
    values = np.random.default_rng(seed).pareto(2, size=40)
    ranks = [stable_rank(values**2), participation_ratio(values**2), effective_rank_variance(values**2)]
    ordered = [1.0, *(rank for rank in ranks if rank is not None), effective_rank(values) or 0.0, 40.0]
    assert ordered == sorted(ordered) and len(ordered) == 6


def test_singular_values_through_a_gram_matrix() -> None:
    data = np.random.default_rng(0).standard_normal((50, 8)) @ np.diag(10.0 ** -np.arange(8.0))
    through = singular_values_of(np.linalg.eigvalsh(data.T @ data))
    np.testing.assert_allclose(np.sort(through)[::-1], np.linalg.svd(data)[1], rtol=1e-2)
    flat = np.ones((50, 1)) @ np.ones((1, 8))
    assert effective_rank(singular_values_of(np.linalg.eigvalsh(flat.T @ flat))) == pytest.approx(1)
