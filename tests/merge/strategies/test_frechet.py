"""Means on manifolds by name: against karcher, linear, and the manifolds' own means; and what has no mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_models.manifolds import MANIFOLDS, find_manifold, frechet_mean
from merge_models.merge import MergeError, PlanError, merge, prepare
from merge_models.merge.strategies import Frechet, Karcher, Linear
from tests.helpers import merge_states, write_folder

WEIGHTS = (0.5, 0.3, 0.2)


def siblings(*shape: int, spread: float = 0.3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape, generator=generator, dtype=torch.float64)
    own = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in WEIGHTS]
    return [shared + spread * change for change in own]


def merged(points: list[Tensor], strategy: Frechet | Karcher | Linear, base: Tensor | None = None) -> Tensor:
    held = None if base is None else {"w": base}
    return merge_states([{"w": point} for point in points], strategy, base=held)["w"]


def gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("origin", ["zero", "base"])
def test_on_the_sphere_it_is_karcher(per: str, origin: str) -> None:
    base, *points = siblings(9, 8)[:1] + siblings(9, 8, seed=1)
    about = base if origin == "base" else None
    ours = merged(points, Frechet(weight=WEIGHTS, per=per, origin=origin), about)
    assert gap(ours, merged(points, Karcher(weight=WEIGHTS, per=per, origin=origin), about)) < 1e-12


def test_in_flat_space_it_is_linear() -> None:
    points = siblings(9, 8)
    ours = merged(points, Frechet(weight=WEIGHTS, manifold="euclidean"))
    assert gap(ours, merged(points, Linear(weight=WEIGHTS))) < 1e-14


@pytest.mark.parametrize(
    "name", ["rotations", "stiefel", "spd", "gaussians", "simplex", "lorentz", "poincare"]
)
def test_it_is_the_manifolds_own_mean_of_lifted_points(name: str) -> None:
    kind = find_manifold(name)
    points = siblings(*{"vector": (40,), "square": (6, 6), "tall": (9, 4)}[kind.event], spread=0.1)
    if name in ("spd", "gaussians"):
        points = [point @ point.mT + 0.1 * torch.eye(6) for point in points]
    if name == "simplex":
        points = [point.abs() for point in points]
    if name == "poincare":
        points = [point / 4 for point in points]  # the ball takes vectors of up to 5
    manifold = kind.of(tuple(points[0].shape))
    lifted, weights = manifold.lift(torch.stack(points)), torch.tensor(WEIGHTS, dtype=torch.float64)
    rest = (lifted.rest * weights.reshape(-1, *[1] * (lifted.rest.dim() - 1))).sum(0)
    wanted = manifold.lower(frechet_mean(manifold, lifted.point, weights).point, rest)
    ours = merged(points, Frechet(weight=WEIGHTS, manifold=name, otherwise="error"))
    assert gap(ours, wanted) < 1e-12
    assert gap(ours, merged(points, Linear(weight=WEIGHTS))) > (0 if name == "simplex" else 1e-6)


def test_heads_are_points_of_their_own() -> None:
    points = siblings(12, 5)
    strategy = Frechet(manifold="stiefel", per="head", heads=2)
    whole = merged(points, strategy)
    for half in (slice(0, 6), slice(6, 12)):
        part = merged([point[half].contiguous() for point in points], Frechet(manifold="stiefel"))
        assert gap(whole[half], part) < 1e-13


def test_what_has_no_points_is_averaged_and_told(tmp_path: Path) -> None:
    states = [
        {"square": torch.randn(4, 4), "wide": torch.randn(3, 5), "bias": torch.randn(4)} for _ in range(2)
    ]
    paths = [str(write_folder(tmp_path / f"m{n}", state, config=None)) for n, state in enumerate(states)]
    recipe = {"merge_method": "frechet", "models": [{"model": path} for path in paths]}
    prepared = prepare({**recipe, "parameters": {"manifold": "rotations"}})
    prepared.close()
    notes = {task.name: task.note for task in prepared.plan.tasks}
    assert notes["square"] == ""
    assert notes["wide"] == "averaged: a point is a square matrix, not 3 x 5"
    assert notes["bias"] == "averaged: a point is a matrix, not of 1 dimensions"
    result = merge_states(states, Frechet(manifold="rotations"))
    for name in ("wide", "bias"):
        torch.testing.assert_close(result[name], (states[0][name] + states[1][name]) / 2)


@pytest.mark.parametrize(
    ("strategy", "points", "words"),
    [
        (
            Frechet(manifold="rotations", otherwise="error"),
            siblings(3, 5),
            r"'w' \[3, 5\]: on rotations a point is",
        ),
        (
            Frechet(manifold="spd", otherwise="error"),
            siblings(4, 4),
            "a point is not symmetric positive definite;",
        ),
        (
            Frechet(otherwise="error"),
            [torch.zeros(6)] * 2 + [torch.ones(6)],
            "a point is zero, which has no dir",
        ),
        (Frechet(manifold="sfere"), siblings(4), "takes one of .*did you mean 'sphere'"),
        (
            Frechet(per="head", heads=5, otherwise="error"),
            siblings(12, 5),
            "12 rows are no 5 heads of equal size",
        ),
    ],
)
def test_what_has_no_mean_may_stop_the_merge(strategy: Frechet, points: list[Tensor], words: str) -> None:
    with pytest.raises(MergeError, match=words):
        merged([point.clone() for point in points], strategy)


def test_opposite_points_are_averaged() -> None:
    first, second, _ = siblings(6)
    points = [first, -first, second]
    assert gap(merged(points, Frechet(weight=(1, 1, 0))) + first, first) < 1e-14
    with pytest.raises(PlanError, match="cut locus"):
        merged(points, Frechet(weight=(1, 1, 0), otherwise="error"))


def test_every_manifold_merges_every_shape(tmp_path: Path) -> None:
    shapes = {
        "square": (5, 5),
        "tall": (8, 3),
        "vector": (7,),
        "scalar": (),
        "empty": (0, 4),
        "conv": (4, 2, 3),
    }
    states = [{n: torch.randn(s) for n, s in shapes.items()} for _ in range(2)]
    for name in MANIFOLDS:
        for per in ("tensor", "row", "head"):
            result = merge(states, Frechet(manifold=name, per=per))
            assert all(torch.isfinite(result[key]).all() for key in shapes), (name, per)
