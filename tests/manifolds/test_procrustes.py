"""Procrustes rotations: the best fit, nearest to the identity, by SVD and from one shared factorisation."""

import pytest
import torch
from torch import Tensor

from merge_models.manifolds.procrustes import (
    ProcrustesError,
    SharedProcrustes,
    procrustes,
    procrustes_from_moment,
)
from merge_models.manifolds.rotations import SpecialOrthogonal

torch.set_num_threads(1)
SHAPES = {"tall": (96, 24), "square": (32, 32), "wide": (12, 48)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def problem(shape: tuple[int, int], distance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A base with singular values from 1 to 0.1 and a target at a relative distance."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(noise[0], full_matrices=False)
    values = torch.logspace(0, -1, len(values), dtype=torch.float64)
    base = (left * values) @ right
    return base, base + distance * base.norm() / noise[1].norm() * noise[1]


def completed(moment: Tensor) -> Tensor:
    """The formula of the null-space completion, written out."""
    left, values, right = torch.linalg.svd(moment)
    rank = int((values > 1e-10 * values[0]).sum())
    inner_left, _, inner_right = torch.linalg.svd(left[:, rank:].mT @ right.mT[:, rank:])
    known = left[:, :rank] @ right[:rank]
    return known + left[:, rank:] @ inner_left @ inner_right @ right[rank:]


@every_shape
def test_an_equal_target_gives_the_identity_exactly(shape: tuple[int, int]) -> None:
    base, target = problem(shape, 0.1)
    identity = torch.eye(shape[1], dtype=torch.float64)
    found = procrustes(torch.stack([base, base]), torch.stack([base, target]))
    assert torch.equal(found[0], identity) and not torch.equal(found[1], identity)
    shared = SharedProcrustes.from_gram(base.mT @ base)
    assert torch.equal(shared.solve(torch.zeros_like(identity)).rotation, identity)


@every_shape
def test_svd_solver_finds_the_rotation_that_made_the_target(shape: tuple[int, int]) -> None:
    base, _ = problem(shape, 0.0)
    generator = torch.Generator().manual_seed(1)
    noise = 0.05 * torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    rotation = torch.linalg.matrix_exp(noise - noise.mT)
    found = procrustes(base, base @ rotation)
    assert SpecialOrthogonal(shape[1]).check(found) is None
    torch.testing.assert_close(base @ found, base @ rotation)
    if shape[0] >= shape[1]:
        torch.testing.assert_close(found, rotation)
    identity = torch.eye(shape[1], dtype=torch.float64)
    assert float((found - identity).norm()) <= float((rotation - identity).norm()) + 1e-9


@every_shape
@pytest.mark.parametrize("distance", [1e-3, 0.02])
def test_null_space_is_completed_by_the_formula(shape: tuple[int, int], distance: float) -> None:
    base, target = problem(shape, distance)
    moment = base.mT @ target
    torch.testing.assert_close(procrustes_from_moment(moment), completed(moment))


@every_shape
@pytest.mark.parametrize("distance", [1e-6, 1e-3, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shared_factorisation_agrees_with_svd(
    shape: tuple[int, int], distance: float, dtype: torch.dtype
) -> None:
    base, _ = problem(shape, distance)
    shared = SharedProcrustes.from_gram((base.mT @ base).to(dtype))
    for seed in range(3):
        change = distance * base.norm() / 10 * torch.randn_like(base) / base.numel() ** 0.5 * seed
        found = shared.solve((base.mT @ change).to(dtype))
        assert found.method == "sylvester"
        expected = procrustes(base, base + change)
        torch.testing.assert_close(found.rotation.double(), expected, atol=1e-6, rtol=0)
        assert SpecialOrthogonal(shape[1]).check(found.rotation, tolerance=1e-6) is None


@pytest.mark.parametrize("distance", [1e-4, 0.02, 0.05, 0.1])
def test_shared_factorisation_goes_down_to_rounding(distance: float) -> None:
    base, target = problem((96, 24), distance)
    shift = base.mT @ (target - base)
    found = SharedProcrustes.from_gram(base.mT @ base).solve(shift, tolerance=1e-13, max_iterations=40)
    assert found.method == "sylvester"
    torch.testing.assert_close(found.rotation, procrustes(base, target), atol=1e-13, rtol=0)


def test_weak_directions_are_solved_in_their_block() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(96, 64, generator=generator, dtype=torch.float64)
    base = base @ torch.diag(torch.logspace(0, -4, 64, dtype=torch.float64))
    change = 1e-6 * torch.randn(96, 64, generator=generator, dtype=torch.float64)
    found = SharedProcrustes.from_gram(base.mT @ base, null_tolerance=0.0).solve(base.mT @ change)
    expected = procrustes(base, base + change, null_tolerance=0.0)
    assert found.method == "sylvester"
    assert float((base @ (found.rotation - expected)).norm() / base.norm()) < 1e-5
    assert SpecialOrthogonal(64).check(found.rotation, tolerance=1e-10) is None


def test_a_far_target_falls_to_the_svd() -> None:
    base, target = problem((32, 32), 1.0)
    found = SharedProcrustes.from_gram(base.mT @ base).solve(base.mT @ (target - base))
    assert found.method == "svd"
    torch.testing.assert_close(found.rotation, procrustes(base, target))


@pytest.mark.parametrize("flips", [2, 24], ids=["plane", "all"])
def test_a_base_turned_by_pi_is_not_taken_for_the_base(flips: int) -> None:
    base, _ = problem((96, 24), 0.0)
    signs = torch.ones(24, dtype=torch.float64)
    signs[:flips] = -1  # an even number: a rotation, at which the identity is stationary too
    fit = SharedProcrustes.from_gram(base.mT @ base).solve(base.mT @ (base * signs - base))
    assert fit.method == "svd"
    assert torch.allclose(fit.rotation, torch.diag(signs), atol=1e-10)


def test_a_reflection_turns_its_least_direction_round() -> None:
    moment = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64))
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(procrustes_from_moment(moment), identity)
    spare = torch.diag(torch.tensor([3.0, -2.0, 0.0], dtype=torch.float64))
    turned = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(procrustes_from_moment(spare), turned)


def test_nothing_to_fit_gives_the_identity() -> None:
    zero = torch.zeros(4, 4, dtype=torch.float64)
    torch.testing.assert_close(procrustes_from_moment(zero), torch.eye(4).double())
    found = SharedProcrustes.from_gram(zero).solve(zero)
    assert torch.equal(found.rotation, torch.eye(4).double())


def test_shapes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ProcrustesError, match=r"\(3, 2\), \(2, 2\)"):
        procrustes(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ProcrustesError, match=r"\(3, 2\)"):
        procrustes_from_moment(torch.ones(3, 2))
    with pytest.raises(ProcrustesError, match=r"\(3, 2\)"):
        SharedProcrustes.from_gram(torch.ones(3, 2))
    with pytest.raises(ProcrustesError, match=r"the Gram is \(2, 2\), the shift \(3, 3\)"):
        SharedProcrustes.from_gram(torch.eye(2)).solve(torch.ones(3, 3))
