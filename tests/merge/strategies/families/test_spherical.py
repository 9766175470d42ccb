"""What strategies on spheres share: degenerate points, recipes, mixing by row and column."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_models.manifolds import Gram
from merge_models.merge import PlanError, RecipeError
from merge_models.merge.cli.results import figure_lines
from merge_models.merge.contract.strategy import BaseModel
from merge_models.merge.kernels.mixing import column_gram, mix, row_gram
from merge_models.merge.strategies import (
    AbstractStrategy,
    Karcher,
    ModelStock,
    MultiSlerp,
    NormMean,
    NuSlerp,
    Slerp,
    UnitMean,
)
from tests.helpers import assert_same_bits, merge_states, read_folder, tensors, write_folder
from tests.merge.strategies.sphere import (
    WEIGHTS,
    ZEROS,
    family,
    gap,
    merged,
    mixture_of,
    slerp_formula,
)


class TestDegenerate:
    MEANS = (Karcher, UnitMean, NormMean, MultiSlerp)

    @pytest.mark.parametrize("kind", MEANS)
    def test_opposite_parents_give_the_linear_mean(self, kind: type) -> None:
        _, a, b = family(0.4, 2)
        assert gap(merged([a, -a, a, -a, b], kind(weight=(1, 1, 1, 1, 0))) + a, a) < 1e-14
        opposite = Gram.from_points(torch.stack([a.flatten(), -a.flatten()]))
        mixture = mixture_of(kind(), opposite)
        assert mixture.parents.tolist() == [0.5, 0.5]
        assert mixture.figures.get("converged", False) is False

    @pytest.mark.parametrize("kind", [Karcher, UnitMean, NormMean, Slerp, NuSlerp, ModelStock])
    def test_nothing_is_said_to_fail_where_all_are_zero(self, kind: type) -> None:
        """A pooler's bias may be zero in every parent: its mean is zero, and nothing was given up for it."""
        strategy = kind().resolved(2)
        zeros = Gram.from_points(torch.zeros(2, 6, dtype=torch.float64))
        parents = strategy.mixture(zeros).parents
        assert torch.equal(mix([torch.zeros(1, 6)] * 2, parents, None, None)[0], ZEROS)
        settings: dict[str, Any] = {"origin": "base"} if hasattr(strategy, "origin") else {}
        based = kind(**settings).resolved(2).mixture(zeros, True) if kind is not Slerp else None
        for found in filter(None, (strategy.mixture(zeros), based)):
            assert all(value is not False for value in found.figures.values())
            assert found.figures["reason"] in ("every model is zero", "every model is equal to the base")
            assert not {"length", "cosine", "t"} & set(found.figures)
        bad = Gram.from_points(torch.full((2, 6), float("nan"), dtype=torch.float64))
        assert strategy.mixture(bad).figures.get("reason") in (None, "a model holds NaN or Inf")
        assert strategy.mixture(bad).figures.get("converged", False) is False

    @pytest.mark.parametrize("kind", [Karcher, UnitMean, NormMean, Slerp, NuSlerp])
    def test_a_direction_that_was_given_up_has_a_reason(self, kind: type) -> None:
        opposite = Gram.from_points(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double())
        figures = kind().resolved(2).mixture(opposite).figures
        assert figures["reason"].count("opposite models") == 1 and " line" in figures["reason"]
        assert figures.get("converged", figures.get("arc", False)) is False
        lone = Gram.from_points(torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double())
        assert ("reason" in kind().resolved(2).mixture(lone).figures) is (kind in (Slerp, NuSlerp))

    def test_the_summary_says_why(self) -> None:
        told = {"a": {"converged": True}, "b": {"converged": True, "reason": "every model is zero"}}
        assert figure_lines(told, False) == ["  converged: 2 of 2 tensors", "  1 tensor: every model is zero"]

    @pytest.mark.parametrize("kind", MEANS)
    def test_a_zero_parent_counts_in_the_norm_alone(self, kind: type) -> None:
        _, a, b = family(0.4, 2)
        result = merged([a, b, torch.zeros_like(a)], kind())
        wanted = merged([a, b], kind())
        assert gap(result * 1.5, wanted) < 1e-13

    @pytest.mark.parametrize("kind", MEANS)
    def test_one_bad_value_does_not_become_a_bad_tensor(self, kind: type) -> None:
        gram = Gram.from_points(torch.stack([x.flatten() for x in family(0.3)[1:]]))
        gram.differences[1, 2] = float("nan")
        mixture = mixture_of(kind(weight=WEIGHTS), gram)
        assert mixture.parents.tolist() == pytest.approx(WEIGHTS, rel=1e-15)

    @pytest.mark.parametrize("kind", MEANS)
    def test_rank_one_matrices(self, kind: type) -> None:
        a = torch.outer(torch.arange(1.0, 7), torch.arange(1.0, 9)).double()
        assert gap(merged([a, 2 * a, 3 * a], kind()), 2 * a) < 1e-14

    def test_weightless_parents_do_not_matter(self) -> None:
        points = family(0.4)[1:]
        for kind in self.MEANS:
            assert_same_bits(merged(points, kind(weight=(0.0, 2.0, 0.0))), points[1])


BAD = [
    (Slerp(t=1.5), 2, False, RecipeError, r"'t' must be in \[0, 1\], not 1.5"),
    (Slerp(t=-0.1), 2, False, RecipeError, r"'t' must be in \[0, 1\]"),
    (Slerp(), 3, False, PlanError, "slerp merges exactly 2 models, not 3"),
    (Slerp(), 1, False, PlanError, "slerp merges exactly 2 models, not 1"),
    (NuSlerp(), 3, False, PlanError, "nuslerp merges exactly 2 models, not 3"),
    (MultiSlerp(weight=(-0.5, 0.5)), 2, False, RecipeError, r"'weight' must be in \[0, inf\)"),
    (Karcher(weight=(1.0, -1.0)), 2, False, RecipeError, r"'weight' must be in \[0, inf\)"),
    (Karcher(weight=(1.0, 1.0)), 3, False, RecipeError, "'weight' has 2 values for 3 models"),
    (Karcher(weight=0.0), 2, False, RecipeError, "every weight is 0"),
    (Karcher(origin="base"), 2, False, PlanError, "karcher needs a base model"),
    (UnitMean(origin="base"), 2, False, PlanError, "unit_mean needs a base model"),
    (Karcher(origin="bass"), 2, True, RecipeError, "takes one of zero, base, not 'bass'"),
    (Karcher(per="neuron"), 2, True, RecipeError, "takes one of tensor, row, not 'neuron'"),
    (Karcher(max_iter=-1), 2, False, RecipeError, "'max_iter' must be"),
    (MultiSlerp(eps=0.0), 2, False, RecipeError, "'eps' must be"),
    (ModelStock(), 2, False, PlanError, "model_stock needs a base model"),
    (ModelStock(), 1, True, PlanError, "model_stock merges at least 2 models, not 1 besides the base"),
]


@pytest.mark.parametrize(("strategy", "count", "with_base", "error", "words"), BAD)
def test_bad_input(
    strategy: AbstractStrategy, count: int, with_base: bool, error: type[Exception], words: str
) -> None:
    base, *points = family(0.1, count)
    with pytest.raises(error, match=words):
        merged(points, strategy, base if with_base else None)


class TestRecipes:
    def run(self, place: Path, text: str) -> dict[str, Tensor]:
        from merge_models.merge import run_recipe

        for number, name in enumerate("abc"):
            write_folder(place / name, tensors(number))
        recipe = place / "recipe.yml"
        recipe.write_text(text.replace("@", f"{place}/"), encoding="utf-8")
        run_recipe(recipe, place / "out", threads=1)
        return read_folder(place / "out")

    def test_slerp_starts_at_the_base_model(self, tmp_path: Path) -> None:
        out = self.run(
            tmp_path,
            "merge_method: slerp\nbase_model: '@b'\nmodels:\n- model: '@a'\n- model: '@b'\n"
            "parameters: {t: 0.25}\n",
        )
        a, b = tensors(0), tensors(1)
        for name in a:
            assert gap(out[name], slerp_formula(b[name].double(), a[name].double(), 0.25)) < 1e-7

    def test_mergekits_karcher_runs_as_it_is_with_the_listed_base_as_a_parent(self, tmp_path: Path) -> None:
        out = self.run(
            tmp_path,
            "merge_method: karcher\nbase_model: '@a'\nmodels:\n- model: '@a'\n- model: '@b'\n"
            "parameters: {max_iter: 10, tol: 1e-9}\n",
        )
        both = merge_states([tensors(0), tensors(1)], Karcher())
        assert all(gap(out[name], both[name]) < 1e-7 for name in both)

    def test_about_the_base_the_base_is_no_parent(self, tmp_path: Path) -> None:
        out = self.run(
            tmp_path,
            "merge_method: fisher_rao\nbase_model: '@a'\n"
            "models:\n- model: '@a'\n- model: '@b'\n- model: '@c'\n"
            "parameters: {origin: base}\n",
        )
        both = merge_states([tensors(1), tensors(2)], Karcher(origin="base"), base=tensors(0))
        assert all(gap(out[name], both[name]) < 1e-7 for name in both)

    def test_what_the_base_is_depends_on_the_origin(self) -> None:
        assert Karcher.base_for({}) is BaseModel.UNUSED
        assert Karcher.base_for({"origin": "base"}) is BaseModel.REQUIRED
        filters = [{"filter": "mlp", "value": "base"}, {"value": "zero"}]
        assert Karcher.base_for({"origin": filters}) is BaseModel.OPTIONAL
        assert MultiSlerp.base_for({}) is BaseModel.OPTIONAL


def test_none_waits_for_geoopt() -> None:
    script = """
import sys, torch
from merge_models.merge import merge
from merge_models.merge.strategies import Karcher, ModelStock, MultiSlerp, NormMean, NuSlerp, Slerp, UnitMean
a, b = {"w": torch.ones(3, 4)}, {"w": torch.eye(3, 4)}
for strategy in (Karcher(), Slerp(), NuSlerp(), MultiSlerp(), NormMean(), UnitMean(), ModelStock()):
    merge([a, b], strategy, base={"w": torch.zeros(3, 4)} if isinstance(strategy, ModelStock) else None)
    assert "geoopt" not in sys.modules, strategy
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class TestMixing:
    def test_grams_by_pieces(self) -> None:
        base, *points = family(0.2, size=(300, 400))
        rows = row_gram(points, base)
        whole = Gram.from_points(torch.stack(points, dim=-2), base)
        columns = column_gram(points, base)
        turned = Gram.from_points(torch.stack([x.T for x in points], dim=-2), base.T)
        for ours, wanted in ((rows, whole), (columns, turned)):
            assert gap(ours.reference.squeeze(0), wanted.reference) < 1e-14
            assert gap(ours.cross.squeeze(0), wanted.cross) < 1e-13
            assert gap(ours.differences.squeeze(0), wanted.differences) < 1e-14

    def test_mixes_by_tensor_row_and_column(self) -> None:
        base, *points = family(0.2, size=(300, 400))
        stack = torch.stack(points, dim=-1)
        generator = torch.Generator().manual_seed(2)
        for shape in ((3,), (300, 3), (1, 400, 3)):
            weights = torch.rand(shape, generator=generator, dtype=torch.float64)
            rest = torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
            wide = weights if len(shape) != 2 else weights.unsqueeze(1)
            tail = rest if len(shape) != 2 else rest.unsqueeze(1)
            wanted = (stack * wide).sum(-1) + tail * base
            assert gap(mix(points, weights, base, rest), wanted) < 1e-14
