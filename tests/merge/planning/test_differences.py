"""The page of differences from mergekit says what plans say, and each line appears where it holds alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from merge_models.merge import prepare, strategies
from merge_models.merge.cli import main
from merge_models.merge.planning.differences import DIFFERENCES
from merge_models.merge.recipes.mergekit import METHODS
from merge_models.merge.recipes.recipe import parse_recipe
from tests.helpers import CONFIG, ROOT, tensors, write_folder, write_json
from tests.merge.tokenizer.test_alignment import _model as llama_with
from tests.merge.tokenizer.test_alignment import _tokenizer as tokenizer_with

PAGE = ROOT / "docs" / "differences-from-mergekit.md"
TOLD = {one.what: one for one in DIFFERENCES}
SHAPES = {
    "model.embed_tokens.weight": (11, 8),
    "model.layers.0.mlp.up_proj.weight": (8, 8),
    "model.layers.1.mlp.up_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}
HEAD, FILTERS = {"lm_head.weight": (11, 8)}, {"model.conv.weight": (4, 3, 2, 2)}
OWN_HEAD = {"head": (SHAPES | HEAD, torch.float32), "other": (SHAPES | HEAD, torch.float32)}
MODELS = {
    "a": (SHAPES, torch.float32), "b": (SHAPES, torch.float32), "c": (SHAPES, torch.float32),
    "n": (SHAPES, torch.bfloat16), "m": (SHAPES, torch.bfloat16), **OWN_HEAD,
    "f": (SHAPES | FILTERS, torch.float32), "g": (SHAPES | FILTERS, torch.float32),
    "h": (SHAPES | FILTERS, torch.float32),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models; t, u and p have tokenizers: u one more token and in another order, p padding."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, (shapes, dtype)) in enumerate(MODELS.items()):
        config = {**CONFIG, "num_hidden_layers": 2, "tie_word_embeddings": "lm_head.weight" not in shapes}
        write_folder(folder / name, tensors(seed, dtype, shapes), config=config)
    llama_with(folder / "t", tokenizer_with(), 0)
    more = tokenizer_with(["<|x|>"], text="a dog and a fox and other words")
    llama_with(folder / "u", more, 1)
    config = json.loads((folder / "u" / "config.json").read_text())
    write_json(folder / "u" / "config.json", {**config, "eos_token_id": len(more) - 1})
    llama_with(folder / "p", tokenizer_with(), 2, rows=320)
    adapter = folder / "lora"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 8), name.format("B"): torch.ones(8, 2)},
        adapter / "adapter_model.safetensors",
    )
    return folder


def models(method: str, *names: str, base: str | None = None, **parameters: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {"merge_method": method, "models": [{"model": name} for name in names]}
    if method in ("linear", "nuslerp", "multislerp"):
        parameters.setdefault("weight", 1)
    return recipe | {"parameters": parameters} | ({"base_model": base} if base else {})


def slices(*runs: tuple[str, int, int]) -> dict[str, Any]:
    pieces = [{"sources": [{"model": name, "layer_range": [start, stop]}]} for name, start, stop in runs]
    return {"merge_method": "passthrough", "slices": pieces}


def tokens(*names: str, base: str | None = None, **settings: Any) -> dict[str, Any]:
    return models("linear", *names, base=base) | {"tokenizer": settings}


Recipes = tuple[dict[str, Any], dict[str, Any]]
CASES: dict[str, Recipes] = {
    "arithmetic and `dtype`": (models("linear", "n", "m"), models("linear", "a", "b")),
    "`base_model` with `linear`, `karcher`": (
        models("linear", "a", "b", base="c"), models("linear", "a", "c", base="c")
    ),
    "gradients at the final norm and `lm_head`": (
        models("linear", "a", "b", weight=[1, 2]), models("linear", "a", "b", weight=[1])
    ),
    "config and tokenizer without `base_model`": (
        models("karcher", "a", "b"), models("karcher", "a", "b", base="a")
    ),
    "`karcher`": (models("karcher", "a", "b"), models("linear", "a", "b")),
    "`multislerp`": (models("multislerp", "a", "b"), models("nuslerp", "a", "b")),
    "`slerp`": (models("slerp", "a", base="b", t=0.5), models("nuslerp", "a", "b")),
    "rows of convolutions (`nuslerp`, `model_stock`, `della`)": (
        models("nuslerp", "f", "g", nuslerp_flatten=False), models("nuslerp", "f", "g")
    ),
    "`model_stock` of task vectors that point apart": (
        models("model_stock", "a", "b", base="c"), models("task_arithmetic", "a", "b", base="c", weight=1)
    ),
    "`rescale: true` of DARE and DELLA": (
        models("dare_ties", "a", base="b", weight=1, density=0.5, rescale=True),
        models("dare_ties", "a", base="b", weight=1, density=0.5, rescale="l1"),
    ),
    "random masks": (
        models("della_linear", "a", base="b", weight=1, density=0.5),
        models("ties", "a", base="b", weight=1, density=0.5),
    ),
    "ties at a threshold (`ties`, `breadcrumbs`, `sce`)": (
        models("ties", "a", base="b", weight=1, density=0.5), models("ties", "a", base="b", weight=1)
    ),
    "thresholds such as 1e-6 in `sce`, `model_stock`": (
        models("sce", "a", "b", base="c"), models("ram", "a", "b", base="c")
    ),
    "`arcee_fusion`": (models("arcee_fusion", "a", base="b"), models("nearswap", "a", base="b", t=0.1)),
    "lists that speak of layers in `config.json` of stacked models": (
        slices(("a", 0, 2), ("a", 1, 2)), slices(("a", 0, 1), ("a", 1, 2))
    ),
    "a head of its own in some of the models of a stack": (
        slices(("head", 0, 2), ("a", 0, 2)), slices(("head", 0, 2), ("other", 0, 2))
    ),
    "rows of the embeddings beyond the tokens, with `tokenizer`": (
        tokens("p", "t", source="p"), tokens("p", "t", source="p", pad_to_multiple_of=2)
    ),
    "ordinary tokens of other models in a union": (
        tokens("t", "u", source="union"), tokens("t", "p", source="union")
    ),
    "token ids in `config.json` and `generation_config.json`": (
        tokens("u", "t", source="t"), tokens("t", "u", source="t")
    ),
    "`model+adapter`": (models("linear", "a+lora", "b"), models("linear", "a", "b")),
}  # fmt: skip


def rows() -> list[list[str]]:
    """The page's table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_page_says_which_differences_plans_tell() -> None:
    assert all(len(row) in (4, 5) and all(row[:4]) for row in rows())
    assert {row[0] for row in rows() if row[4:] == ["told"]} == TOLD.keys() == CASES.keys()
    assert len({one.told for one in DIFFERENCES}) == len(DIFFERENCES)


@pytest.mark.parametrize("what", CASES)
def test_a_plan_tells_what_applies_and_only_that(
    what: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    there, not_there = (prepare(parse_recipe(recipe)).plan.notes for recipe in CASES[what])
    assert TOLD[what].told in there
    assert TOLD[what].told not in not_there


def test_lines_are_printed_as_the_page_says(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (tmp_path / "r.yml").write_text(json.dumps(models("karcher", "n", "m", base="a")))
    told = prepare(tmp_path / "r.yml").plan.notes
    assert len(told) == 3
    for words in (["plan", tmp_path / "r.yml"], ["run", tmp_path / "r.yml", "-o", tmp_path / "out", "-v"]):
        printed = CliRunner().invoke(main, list(map(str, words))).output
        assert [f"  differs from mergekit: {line}" in printed for line in told] == [True] * 3


def test_methods_that_mergekit_has_not_differ_from_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {kind.name for kind in strategies.STRATEGIES} >= METHODS
    monkeypatch.chdir(place)
    assert prepare(parse_recipe(models("unit_mean", "n", "m", weight=[1, 2]))).plan.notes == ()
