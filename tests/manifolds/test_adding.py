"""A new manifold takes three places: its file, the list, the tests' table; recipes know it at once."""

from __future__ import annotations

from pathlib import Path

from tests.tree import changed, copied_tree, edit, run, run_tests

NEW_FILE = '''"""Positive vectors under relative change: flat in their logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from merge_models.manifolds.base import AbstractManifold
from merge_models.manifolds.lifting import Lifted


class PositiveOrthant(AbstractManifold):
    """Vectors `[..., n]` with `dist(x, y) = |log x - log y|`; a tangent is a change of the logarithms."""

    name = "PositiveOrthant"
    ndim = 1
    reversible = False
    undefined = "has an entry that is not positive"

    def lift(self, values: Tensor) -> Lifted:
        defined = (torch.isfinite(values) & (values > 0)).all(-1)
        return Lifted(values, values.new_zeros(defined.shape), defined)

    def projx(self, x: Tensor) -> Tensor:
        return x.clamp_min(torch.finfo(x.dtype).tiny)

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        return x * u

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        return (u * (u if v is None else v)).sum(-1, keepdim=keepdim)

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return x * u.exp()

    retr = expmap

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return v

    def minimal_log(self, point: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return torch.log1p((other - point) / point), torch.zeros(point.shape[:-1], dtype=torch.bool)

    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        return torch.log1p((y - x) / x).norm(dim=-1, keepdim=keepdim)

    def magnitude(self, point: Tensor) -> Tensor:
        return point.new_ones(point.shape[:-1])

    def mean_is_unique(self, mean: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        return torch.ones(weights.shape[:-1], dtype=torch.bool)

    def _violation(self, point: Tensor, tolerance: float) -> str | None:
        least = float(point.min()) if point.numel() else 1.0
        return None if least > 0 else f"an entry is not positive: {least:.3g}"
'''
LISTED = '    "orthant": "positive_orthant.PositiveOrthant",\n'
IMPORT = "from merge_models.manifolds.positive_orthant import PositiveOrthant\n"
ROW = """    Case(
        "orthant",
        PositiveOrthant(),
        (5,),
        torch.exp,
        permute_entries(5),
        ((torch.tensor([1.0, 0.0]), "an entry is not positive: 0"),),
    ),
"""
MERGES = """
import torch
from merge_models.merge import merge
from merge_models.merge.strategies import Frechet
one, other = {"w": torch.tensor([[1.0, 8.0]])}, {"w": torch.tensor([[4.0, 2.0]])}
merged = merge([one, other], Frechet(manifold="orthant", per="row"))["w"]
torch.testing.assert_close(merged, torch.tensor([[2.0, 4.0]]))
"""


def test_a_new_manifold_takes_three_places_and_keeps_every_law(tmp_path: Path) -> None:
    place = copied_tree(tmp_path)
    listed, table = place / "manifolds/__init__.py", place / "tests/manifolds/cases.py"
    (place / "manifolds/positive_orthant.py").write_text(NEW_FILE, encoding="utf-8")
    edit(listed, '    "simplex": "simplex.ProbabilitySimplex",\n', LISTED)
    edit(table, "from merge_models.manifolds.rotations import", IMPORT)
    edit(table, '    Case("euclidean",', ROW)
    assert changed(place) == [
        "manifolds/__init__.py",
        "manifolds/positive_orthant.py",
        "tests/manifolds/cases.py",
    ]
    assert run_tests(place, "tests/manifolds/test_laws.py", "-k", "orthant") >= 30
    run(place, "-c", MERGES)
    assert "orthant" in run(place, "-m", "merge_models.merge.cli", "methods", "frechet")
