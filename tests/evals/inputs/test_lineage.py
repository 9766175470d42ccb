"""Which models a merge came from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from merge_models.evals.inputs.lineage import lineage, short_name
from merge_models.merge import merge, run_recipe
from merge_models.merge.demo.skills import SKILLS, demo_folder
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.strategies import Linear
from tests.evals.merges import BASE, BOTH, EXPERTS, ONE, TWO, _recipe


def test_lineage_reads_the_recipes_weights(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(EXPERTS[:2], Linear(weight=(3.0, 1.0)), out=out)
    found = lineage(out, (), None, None)
    assert [Path(p).name for p in found.parents] == list(SKILLS)[:2]
    assert found.weights == pytest.approx((0.75, 0.25))
    assert found.base is None


LISTED: dict[str, float | None] = {ONE: 4, "base": None, TWO: 1}


@pytest.mark.parametrize(
    ("method", "base", "models", "parameters", "parents", "is_reference"),
    [
        # The base is mixed in: a parent as the others are.
        ("slerp", TWO, BOTH, {"t": 0.25}, {TWO: 0.75, ONE: 0.25}, False),
        ("slerp", None, BOTH, {"t": 0.25}, {ONE: 0.75, TWO: 0.25}, False),
        ("linear", ONE, {TWO: 3, ONE: 1}, {}, {ONE: 0.25, TWO: 0.75}, False),
        ("karcher", ONE, {TWO: 3, ONE: 1}, {}, {ONE: 0.25, TWO: 0.75}, False),
        ("nearswap", ONE, {TWO: None}, {}, {ONE: 0.5, TWO: 0.5}, False),
        ("arcee_fusion", ONE, {TWO: None}, {}, {ONE: 0.5, TWO: 0.5}, False),
        # It is a point of reference, listed or not; or gives config and tokenizer only.
        ("ties", "base", LISTED, {}, {ONE: 0.8, TWO: 0.2}, True),
        ("ties", "base", {ONE: 4, TWO: 1}, {}, {ONE: 0.8, TWO: 0.2}, True),
        ("karcher", "base", LISTED, {"origin": "base"}, {ONE: 0.8, TWO: 0.2}, True),
        ("linear", "base", BOTH, {}, {ONE: 0.5, TWO: 0.5}, True),
        # Weights that are zero, given for all, below zero.
        ("linear", None, {ONE: 1, TWO: 0}, {}, {ONE: 1.0, TWO: 0.0}, False),
        ("linear", None, BOTH, {"weight": 2.0}, {ONE: 0.5, TWO: 0.5}, False),
        ("linear", None, {ONE: -1, TWO: 3}, {}, {ONE: 0.5, TWO: 0.5}, False),
    ],
)
def test_roles_and_shares_are_the_recipes(
    method: str,
    base: str | None,
    models: dict[str, float | None],
    parameters: dict[str, Any],
    parents: dict[str, float],
    is_reference: bool,
    tmp_path: Path,
) -> None:
    out = tmp_path / "merged"
    run_recipe(_recipe(method, base, models, parameters), out)
    found = lineage(out, (), None, None)
    assert dict(zip(map(short_name, found.parents), found.weights, strict=True)) == pytest.approx(parents)
    assert found.base == (str(BASE) if is_reference else None)
    negative = min(weight or 0 for weight in models.values()) < 0
    assert any("count equally" in note for note in found.notes) == negative


def test_shares_of_layers_are_the_parts_of_the_elements(tmp_path: Path) -> None:
    """Weights by filter mean over the elements, of which ``only`` leaves some out; slices count theirs."""
    folders = {name: str(demo_folder(name)) for name in (ONE, TWO)}
    filtered = {"merge_method": "linear", "parameters": {"normalize": False}, "models": [
        {"model": folders[ONE], "parameters": {"weight": [{"filter": "mlp", "value": 1}, {"value": 0}]}},
        {"model": folders[TWO], "parameters": {"weight": [{"filter": "mlp", "value": 0}, {"value": 1}]}},
    ]}  # fmt: skip
    stacked = {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": folders[ONE], "layer_range": [0, 1]}]},
        {"sources": [{"model": folders[TWO], "layer_range": [0, 1]}]},
    ]}  # fmt: skip
    state = load_file(EXPERTS[0] / "model.safetensors")
    mlp = sum(v.numel() for k, v in state.items() if "mlp" in k)
    total = sum(v.numel() for v in state.values())
    for number, recipe in enumerate((filtered, {**filtered, "only": ["*.mlp.*"]}, stacked)):
        run_recipe(parse_recipe(recipe), tmp_path / str(number))
    whole, some, layers = (lineage(tmp_path / str(number), (), None, None).weights for number in range(3))
    assert whole == pytest.approx((mlp / total, 1 - mlp / total))
    assert some == pytest.approx((1, 0))
    assert layers[1] > 0.1


def test_told_parents_keep_their_shares_and_their_base(tmp_path: Path) -> None:
    out, base = tmp_path / "merged", tmp_path / "base"
    shutil.copytree(BASE, base)
    merge(EXPERTS[:3], Linear(weight=(4.0, 2.0, 2.0)), base=base, out=out)
    swapped = lineage(out, [EXPERTS[1], EXPERTS[0]], None, None)
    assert swapped.weights == pytest.approx((1 / 3, 2 / 3)) and swapped.base == str(base)
    assert lineage(out, [EXPERTS[0], base], None, None).base is None, "it is told to be a parent"
    shutil.rmtree(base)
    moved = lineage(out, EXPERTS, None, None)
    assert moved.base is None and any("pass --base" in note for note in moved.notes)


def test_lineage_finds_parents_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands under the same name in the caller's folder is another model."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for expert in EXPERTS[:2]:
            shutil.copytree(expert, tmp_path / name / expert.name)
    monkeypatch.chdir(tmp_path / "here")
    merge([expert.name for expert in EXPERTS[:2]], Linear(), out=tmp_path / "merged")
    monkeypatch.chdir(tmp_path / "there")
    found = lineage(tmp_path / "merged", (), None, None)
    assert [Path(p) for p in found.parents] == [tmp_path / "here" / expert.name for expert in EXPERTS[:2]]


def test_lineage_takes_a_moved_parent_by_its_name(mean: Path, tmp_path: Path) -> None:
    moved = [tmp_path / folder.name for folder in EXPERTS]
    assert lineage(mean, moved, None, None).parents == tuple(map(str, moved))
