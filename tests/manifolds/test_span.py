"""The Gram principle: N x N inner products carry all of the geometry, digits included."""

import ast
import importlib
import inspect

import pytest
import torch
from torch import Tensor

from merge_models.manifolds import (
    Gram,
    GramError,
    coefficients,
    directions,
    embed,
    mean_coefficients,
    slerp_coefficients,
    step_coefficients,
)
from merge_models.manifolds.base import GeooptSphere
from merge_models.manifolds.frechet import frechet_mean
from merge_models.manifolds.sphere import Sphere

torch.set_num_threads(1)
every_count = pytest.mark.parametrize("count", [1, 2, 3, 5])


def siblings(count: int, distance: float, *, size: int = 4000, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(batch, 1, size, generator=generator)
    noise = torch.randn(batch, count, size, generator=generator)
    return base + distance * noise


def random_weights(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(7), dtype=torch.float64) + 0.1


def karcher(points: Tensor, weights: Tensor) -> Tensor:
    """Coefficients over the points of the unit Karcher mean: what a strategy does."""
    units, norms = directions(embed(Gram.from_points(points)).points)
    live = weights * (norms > 0)
    mean = frechet_mean(Sphere(), units, live)
    return mean_coefficients(units, mean.point, live) / norms.where(norms > 0, 1.0)


@every_count
@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6])
def test_embedding_has_the_mutual_geometry(count: int, distance: float) -> None:
    points = siblings(count, distance).double()
    gram = Gram.from_points(points)
    embedded = embed(gram)
    assert embedded.points.shape == (3, count, count + 1)
    torch.testing.assert_close(gram.full(), points @ points.mT, rtol=1e-12, atol=0)
    again = Gram.from_points(embedded.points, embedded.reference)
    torch.testing.assert_close(again.reference, gram.reference, rtol=1e-13, atol=0)
    own = gram.differences.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = own.unsqueeze(-1) * own.unsqueeze(-2)
    assert float((again.differences - gram.differences).abs().sub(1e-11 * scale).max()) <= 0
    torch.testing.assert_close(again.norms(), points.norm(dim=-1), rtol=1e-12, atol=0)


def test_gram_data_of_blocks_add_up() -> None:
    points = siblings(3, 0.1)
    whole, parts = Gram.from_points(points), points.split(1500, dim=-1)
    summed = sum((Gram.from_points(part) for part in parts[1:]), Gram.from_points(parts[0]))
    torch.testing.assert_close(summed.differences, whole.differences)
    torch.testing.assert_close(summed.cross, whole.cross)


def test_about_reference_takes_the_differences_as_points() -> None:
    points = siblings(3, 0.1).double()
    reference = points.mean(dim=1)
    deltas = embed(Gram.from_points(points, reference).about_reference()).points
    expected = (points - reference.unsqueeze(1)) @ (points - reference.unsqueeze(1)).mT
    torch.testing.assert_close(deltas @ deltas.mT, expected)


@pytest.mark.parametrize("angle", [1e-8, 1e-6, 1e-3, 1.0, 3.0, torch.pi - 1e-5, torch.pi])
def test_angles_keep_their_digits(angle: float) -> None:
    first = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    turn = torch.tensor(angle, dtype=torch.float64)
    second = 3 * torch.stack([turn.cos(), turn.sin(), 0 * turn])
    # The difference of two points of unlike norm is not small, so the twin has the first one's norm.
    for other in (second * 2 / 3, second if angle > 1e-3 else second * 2 / 3):
        found = Gram.from_points(torch.stack([first, other])).angles()[0, 1]
        assert abs(float(found) - angle) <= (1e-9 * angle if angle < 3.1 else 2e-8)


@every_count
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_karcher_coefficients_are_stationary_in_the_full_space(count: int, dtype: torch.dtype) -> None:
    points = siblings(count, 1e-3).to(dtype).double()
    weights = random_weights(count)
    mean = (karcher(points, weights).unsqueeze(-1) * points).sum(dim=1)
    torch.testing.assert_close(mean.norm(dim=-1), torch.ones(3).double(), rtol=1e-13, atol=0)
    units, _ = directions(points)
    logs = Sphere().log(Sphere().project(mean).unsqueeze(1), units)
    residual = (weights.unsqueeze(-1) * logs).sum(dim=1).norm(dim=-1) / weights.sum()
    assert float(residual.max()) < 1e-10 * 1e-3


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("distance", [1e-3, 0.3])
def test_karcher_coefficients_agree_with_geoopt_in_the_full_space(count: int, distance: float) -> None:
    points = siblings(count, distance, batch=1)[0].double()
    weights = random_weights(count)
    weights = weights / weights.sum()
    units, norms = directions(points)
    sphere = GeooptSphere()
    mean = sphere.projx((weights.unsqueeze(-1) * units).sum(dim=0))
    for _ in range(60):
        logs = sphere.logmap(mean.expand_as(units), units)
        mean = sphere.projx(sphere.expmap(mean, (weights.unsqueeze(-1) * logs).sum(dim=0)))
    oracle = torch.linalg.lstsq(units.mT, mean.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(karcher(points, weights) * norms, oracle, atol=1e-9, rtol=0)


def test_equal_parents_share_by_weight_and_zero_parents_drop_out() -> None:
    point = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    shares = karcher(torch.stack([point] * 3), weights) * point.norm()
    torch.testing.assert_close(shares, weights / 4, rtol=1e-14, atol=0)
    shares = karcher(torch.stack([point, 0 * point, 2 * point]), weights) * point.norm()
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.25]).double())
    assert not bool(karcher(torch.zeros(3, 50), weights).any())


def test_antipodes_are_reported_and_have_finite_coefficients() -> None:
    point = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units, _ = directions(embed(Gram.from_points(torch.stack([point, -point]))).points)
    mean = frechet_mean(Sphere(), units)
    assert not bool(mean.converged) and not bool(mean.unique)
    assert "cut locus" in mean.reason
    shares = mean_coefficients(units, mean.point, torch.ones(2).double())
    torch.testing.assert_close(shares, torch.tensor([0.5, -0.5]).double())


def test_permuting_parents_permutes_coefficients() -> None:
    points, weights = siblings(5, 0.5), random_weights(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    shares = karcher(points, weights)
    torch.testing.assert_close(karcher(points[:, order], weights[order]), shares[:, order])


def test_two_parents_are_slerp() -> None:
    points = siblings(2, 0.5)
    gram = Gram.from_points(points)
    shares = karcher(points, torch.tensor([0.75, 0.25])) * gram.norms()
    torch.testing.assert_close(shares, slerp_coefficients(gram.angles()[:, 0, 1], 0.25))
    tiny = slerp_coefficients(torch.tensor([0.0, 1e-12]).double(), 0.25)
    torch.testing.assert_close(tiny, torch.tensor([[0.75, 0.25]] * 2).double())


def test_a_karcher_step_is_the_exponential_of_the_mean_log() -> None:
    units, _ = directions(siblings(4, 1.0).double())
    weights = random_weights(4)
    weights = weights / weights.sum()
    flat = (weights.unsqueeze(-1) * units).sum(dim=1)
    start = weights / flat.norm(dim=-1, keepdim=True)
    mean = Sphere().project(flat)
    logs = (weights.unsqueeze(-1) * Sphere().log(mean.unsqueeze(1), units)).sum(dim=1)
    stepped = step_coefficients(units, start, weights.expand(3, 4))
    expected = Sphere().exp(mean, logs)
    torch.testing.assert_close((stepped.unsqueeze(-1) * units).sum(dim=1), expected)


def test_coefficients_of_least_norm_return_points_of_the_span() -> None:
    points = siblings(3, 1.0, size=20).double()
    share = torch.tensor([0.2, -0.5, 1.3]).double()
    target = (share.unsqueeze(-1) * points).sum(dim=1)
    torch.testing.assert_close(coefficients(points, target), share.expand(3, 3))
    twice = points[:, [0, 0]]
    torch.testing.assert_close(coefficients(twice, points[:, 0]), torch.full((3, 2), 0.5).double())


def test_bad_gram_data_are_refused_with_their_values() -> None:
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(GramError, match=r"\(2,\), \(2, 3\), \(2, 2, 2\)"):
        Gram(one, torch.ones(2, 3).double(), torch.ones(2, 2, 2).double())
    with pytest.raises(GramError, match="float32"):
        Gram(one.float(), torch.ones(2, 1).double(), torch.ones(2, 1, 1).double())


@pytest.mark.parametrize("name", ["", ".span", ".arcs", ".procrustes"])
def test_span_needs_torch_alone(name: str) -> None:
    source = inspect.getsource(importlib.import_module(f"merge_models.manifolds{name}"))
    imported = [line for line in ast.parse(source).body if isinstance(line, ast.ImportFrom | ast.Import)]
    modules = [line.module if isinstance(line, ast.ImportFrom) else line.names[0].name for line in imported]
    light = [f"merge_models.manifolds{part}" for part in (".span", ".arcs", ".procrustes")]
    standard = ["__future__", "dataclasses", "importlib", "math", "typing"]
    assert not {*modules} - {*light, *standard, "torch"}
