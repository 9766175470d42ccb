"""Matrices that are not held."""

from __future__ import annotations

import pytest

from tests.evals.measures.weights.states import gaussian, spectrum_of


def test_matrices_too_large_to_hold_are_read_again_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from merge_models.evals.measures.weights import matrix

    tall, wide = gaussian(0, 900, 400).float(), gaussian(1, 400, 900).float()
    held = [spectrum_of(x, leading=True) for x in (tall, wide)]
    monkeypatch.setattr(matrix, "HELD", 0)
    monkeypatch.setattr(matrix, "READ", 50_000)
    for before, x in zip(held, (tall, wide), strict=True):
        after = spectrum_of(x, leading=True)
        assert after.effective_rank == pytest.approx(before.effective_rank, rel=1e-5)
        assert after.spectral_norm == pytest.approx(before.spectral_norm, rel=1e-5)
