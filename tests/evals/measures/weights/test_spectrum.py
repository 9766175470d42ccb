"""Spectra: estimates and their errors, leading spaces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from merge_models.evals.diagnostics.weights.subspace import subspace_overlap
from tests.evals.measures.weights.states import exact_rank, gaussian, spectrum_of

MATRICES = {
    "square": lambda: gaussian(0, 600, 600),
    "tall": lambda: gaussian(1, 1200, 400),
    "wide": lambda: gaussian(2, 400, 1200),
    "rank 16": lambda: gaussian(3, 600, 16) @ gaussian(4, 16, 500),
    "rank 50": lambda: gaussian(5, 600, 50) @ gaussian(6, 50, 500),
    "outliers": lambda: gaussian(7, 600, 400) + 9 * gaussian(8, 600, 3) @ gaussian(9, 3, 400),
    "power law": lambda: gaussian(10, 700, 400) * torch.arange(1, 401) ** -0.5,
}


@pytest.mark.parametrize("kind", MATRICES)
def test_estimates_err_less_than_they_say(kind: str) -> None:
    matrix = MATRICES[kind]().float()
    found = spectrum_of(matrix)
    assert found.method == "estimated"
    rank, top = exact_rank(matrix), float(np.linalg.norm(matrix.double().numpy(), 2))
    assert abs(found.effective_rank / rank - 1) <= 3 * found.error + 1e-3
    assert found.error <= 0.05
    assert top * (1 - found.spectral_norm_error) - 1e-4 * top <= found.spectral_norm <= top * (1 + 1e-5)


def test_estimates_equal_exact_values_where_the_rank_is_low() -> None:
    matrix = MATRICES["rank 16"]().float()
    found = spectrum_of(matrix)
    assert found.effective_rank == pytest.approx(exact_rank(matrix.double()), rel=1e-3)
    assert found.error == 0


@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (700, 600), (600, 700)], ids=str)
def test_leading_spaces_of_strangers_overlap_by_chance_and_equal_ones_fully(shape: tuple[int, int]) -> None:
    signal = [10 * gaussian(i, shape[0], 8) @ gaussian(10 + i, 8, shape[1]) for i in range(2)]
    noise = [gaussian(20 + i, *shape) for i in range(2)]
    same = [spectrum_of(signal[0] + x, leading=True).leading for x in noise]
    other = [spectrum_of(signal[i] + x, leading=True).leading for i, x in enumerate(noise)]
    for spaces in (same, other):
        for space in spaces:
            assert space is not None and space.shape == (8, shape[0])
            assert torch.allclose(space @ space.T, torch.eye(8, dtype=torch.float64), atol=1e-5)
    chance = 8 / shape[0]
    assert subspace_overlap([s for s in same if s is not None]) == pytest.approx(1 - chance, abs=0.03)
    assert subspace_overlap([s for s in other if s is not None]) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_subspace_overlap_of_random_spaces_is_zero_on_average(seed: int) -> None:
    spaces = [torch.linalg.qr(gaussian(100 * seed + i, 64, 8))[0].T for i in range(12)]
    assert subspace_overlap(spaces) == pytest.approx(0, abs=0.01)
