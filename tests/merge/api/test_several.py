"""Files of several recipes: what later ones name, and when an earlier result serves again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from merge_models.merge import CheckpointError, MergeError, PlanError, RecipeError
from merge_models.merge.api.several import run_recipes
from merge_models.merge.cli import main
from merge_models.merge.recipes.recipe import load_recipe, load_recipes
from tests.helpers import assert_same_bits, listing, read_folder, tensors, write_folder, write_models


def _recipe(models: list[str], name: str | None = None, **more: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": entries, **({"name": name} if name else {}), **more}


def _write(file: Path, *recipes: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump_all(recipes, sort_keys=False))
    return file


def _pair(place: Path) -> tuple[list[str], Path]:
    """Three models; a file that merges two of them and then the result with the third."""
    models = write_models(place, 3)
    first, last = _recipe(models[:2], "first"), _recipe(["first", models[2]])
    return models, _write(place / "recipe.yml", first, last)


def _run(file: Path, out: Path, **options: Any) -> list[bool]:
    """Runs a file; which of its recipes were done (and not found done)."""
    return [step.result is not None for step in run_recipes(load_recipes(file), out, **options)]


def test_later_recipes_merge_earlier_results(tmp_path: Path) -> None:
    _, file = _pair(tmp_path)
    assert _run(file, tmp_path / "out") == [True, True]
    merged, states = read_folder(tmp_path / "out"), [tensors(seed) for seed in range(3)]
    for name, tensor in merged.items():
        first = (states[0][name] + states[1][name]) / 2
        torch.testing.assert_close(tensor, (first + states[2][name]) / 2)
    assert set(read_folder(tmp_path / "out.intermediate/first")) == set(merged)
    record = json.loads((tmp_path / "out/merge_manifest.json").read_text())
    assert [recipe["name"] for recipe in record["earlier_recipes"]] == ["first"]
    card = (tmp_path / "out/README.md").read_text()
    told = list(yaml.safe_load_all(card.split("```yaml\n")[1].split("```")[0]))
    assert str(tmp_path) not in card
    for public, located in zip(told, [*record["earlier_recipes"], record["recipe"]], strict=True):
        names = [model.pop("model") for model in public["models"]]
        paths = [model.pop("model") for model in located["models"]]
        assert public == located and names == [Path(path).name for path in paths]


def test_a_single_recipe_and_several_give_the_same_bytes(tmp_path: Path) -> None:
    models, file = _pair(tmp_path)
    _run(file, tmp_path / "out", intermediate_dir=tmp_path / "between")
    chained = _recipe([str(tmp_path / "between/first"), models[2]])
    run_recipes(load_recipes(_write(tmp_path / "one.yml", chained)), tmp_path / "again")
    assert listing(tmp_path / "between").keys() >= {"first/model.safetensors"}
    left, right = read_folder(tmp_path / "out"), read_folder(tmp_path / "again")
    for name in left:
        assert_same_bits(left[name], right[name], name)


def _edit_recipe(place: Path, models: list[str]) -> None:
    text = (place / "recipe.yml").read_text()
    (place / "recipe.yml").write_text(text.replace("weight: 1", "weight: 2", 1))


def _edit_later_recipe(place: Path, models: list[str]) -> None:
    _write(place / "recipe.yml", _recipe(models[:2], "first"), _recipe(["first", models[2], models[2]]))


def _train_on(place: Path, models: list[str]) -> None:
    """Other values in a file of the same size with the same header."""
    write_folder(Path(models[0]), tensors(9))
    os.utime(Path(models[0]) / "model.safetensors", ns=(1, 1))


def _edit_config(place: Path, models: list[str]) -> None:
    config = Path(models[0]) / "config.json"
    config.write_text(config.read_text().replace("float32", "float16"))


def _truncate(place: Path, models: list[str]) -> None:
    file = place / "out.intermediate/first/model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _leave(place: Path, models: list[str]) -> None: ...


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (_leave, False),
        (_edit_later_recipe, False),
        (_edit_recipe, True),
        (_train_on, True),
        (_edit_config, True),
        (_truncate, True),
    ],
)
def test_a_result_serves_again_only_where_nothing_changed(tmp_path: Path, change: Any, again: bool) -> None:
    models, file = _pair(tmp_path)
    _run(file, tmp_path / "out")
    change(tmp_path, models)
    assert _run(file, tmp_path / "out", overwrite=True) == [again, True]
    fresh = tmp_path / "fresh"
    _run(file, fresh)
    left, right = read_folder(tmp_path / "out"), read_folder(fresh)
    for name in left:
        assert_same_bits(left[name], right[name], name)


def test_a_redone_result_redoes_what_follows(tmp_path: Path) -> None:
    models = write_models(tmp_path, 3)
    documents = [_recipe(models[:2], "a"), _recipe(["a", models[2]], "b"), _recipe(models[1:], "c")]
    documents.append(_recipe(["b", "c"]))
    file = _write(tmp_path / "recipe.yml", *documents)
    assert _run(file, tmp_path / "out") == [True] * 4
    assert _run(file, tmp_path / "out", overwrite=True) == [False, False, False, True]
    _edit_recipe(tmp_path, models)
    assert _run(file, tmp_path / "out", overwrite=True) == [True, True, False, True]


def test_mistakes_of_the_last_recipe_are_found_before_the_first_runs(tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    odd = write_folder(tmp_path / "odd", {**tensors(5), "model.norm.weight": torch.zeros(9)})
    file = _write(tmp_path / "recipe.yml", _recipe(models, "first"), _recipe(["first", str(odd)]))
    with pytest.raises(PlanError, match=r"'model.norm.weight' is \[8\] in first but \[9\]"):
        _run(file, tmp_path / "out")
    assert not (tmp_path / "out.intermediate").exists()


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([_recipe(["a"]), _recipe(["b"])], "recipe 1: has no 'name'"),
        ([_recipe(["a"], "x"), _recipe(["b"], "x")], "the name 'x' stands twice"),
        ([_recipe(["a"], "../x"), _recipe(["b"])], "may have letters"),
        ([_recipe(["a"], "x"), {**_recipe(["b"]), "modles": 1}], "recipe 2: unknown key 'modles'"),
    ],
)
def test_names_are_checked(tmp_path: Path, documents: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipes(_write(tmp_path / "recipe.yml", *documents))


def test_names_stand_for_models_only(tmp_path: Path) -> None:
    """A result named like a method does not change the method (mergekit replaces every string)."""
    models = write_models(tmp_path, 2)
    file = _write(tmp_path / "recipe.yml", _recipe(models, "linear"), _recipe(["linear", models[0]]))
    assert _run(file, tmp_path / "out") == [True, True]


def test_tokenizers_and_adapters_in_several_recipes(tmp_path: Path) -> None:
    """A later recipe sees the tokenizer that an earlier one makes, before and after it runs."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    parents = []
    for number in range(3):
        words = {word: i for i, word in enumerate([*"abcdefghij", f"own{number}"])}
        backend = Tokenizer(models.WordLevel(words, unk_token="a"))
        folder = write_folder(tmp_path / f"m{number}", tensors(number))
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="a").save_pretrained(folder)
        parents.append(str(folder))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    module = "base_model.model.model.layers.0.mlp.up_proj"
    ones = {f"{module}.lora_A.weight": torch.ones(1, 8), f"{module}.lora_B.weight": torch.ones(12, 1)}
    save_file(ones, adapter / "adapter_model.safetensors")
    file = _write(
        tmp_path / "recipe.yml",
        _recipe(parents[:2], "first", tokenizer_source="union", chat_template="chatml"),
        _recipe([f"first+{adapter}", parents[2]], tokenizer={"source": "union"}),
    )
    assert _run(file, tmp_path / "out") == [True, True]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens([10, 11, 12]) == ["own0", "own1", "own2"]
    assert tokenizer.chat_template is not None
    merged, first = read_folder(tmp_path / "out"), read_folder(tmp_path / "out.intermediate/first")
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name], (first[name] + 1 + tensors(2)[name]) / 2)
    assert merged["lm_head.weight"].shape[0] == 13


def test_what_stands_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    _, file = _pair(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists"):
        _run(file, tmp_path / "out")
    (tmp_path / "out.intermediate/first").mkdir(parents=True)
    (tmp_path / "out.intermediate/first/notes.md").write_text("mine")
    with pytest.raises(MergeError, match="holds no checkpoint"):
        _run(file, tmp_path / "other", intermediate_dir=tmp_path / "out.intermediate")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_the_command_line(tmp_path: Path) -> None:
    _, file = _pair(tmp_path)
    with pytest.raises(RecipeError, match="holds 2 recipes"):
        load_recipe(file)
    plan = CliRunner().invoke(main, ["plan", str(file), "--json"])
    assert plan.exit_code == 0, plan.output
    assert [len(document["tensors"]) for document in json.loads(plan.output)] == [6, 6]
    command = ["run", str(file), "-o", str(tmp_path / "out"), "--intermediate-dir", str(tmp_path / "between")]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(main, [*command, "--overwrite"])
    assert "first was made before and is used again" in second.output
    assert (tmp_path / "between/first/config.json").is_file()
