"""Outputs fit the config that they get: what a plan accepts loads, what would not is refused with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge_models.merge import PlanError, prepare, run_recipe
from merge_models.merge.recipes.recipe import parse_recipe
from tests.helpers import CONFIG, SHAPES, tensors, write_folder
from tests.merge.tokenizer.test_alignment import _tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``; ``a`` and ``b`` with a token more each, ``tied`` with that of ``a``; larger ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("models")
    plain, first, second = _tokenizer(), _tokenizer(["<|turn|>"]), _tokenizer(["<|tool|>"])
    models: dict[str, tuple[Any, dict[str, Any]]] = {
        "base": (plain, {}),
        "a": (first, {}),
        "b": (second, {}),
        "tied": (first, {"tie_word_embeddings": True}),
        "tiedbase": (plain, {"tie_word_embeddings": True}),
        "wide": (plain, {"hidden_size": 24, "intermediate_size": 24}),
        "deep": (plain, {"num_hidden_layers": 3}),
    }
    for seed, (name, (tokenizer, changes)) in enumerate(models.items()):
        torch.manual_seed(seed)
        size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, **changes}
        config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=2, **size)
        LlamaForCausalLM(config).save_pretrained(str(place / name))
        tokenizer.save_pretrained(str(place / name))
    return place


def load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kind: Any = AutoModelForCausalLM
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model, AutoTokenizer.from_pretrained(folder)


def stacked(*slices: tuple[str, int, int]) -> str:
    lines = [f"- sources: [{{model: {m}, layer_range: [{a}, {b}]}}]" for m, a, b in slices]
    return "\n".join(["merge_method: passthrough", "slices:", *lines])


OTHER_DONORS = {
    "linear": "merge_method: linear\nmodels: [a, b]\nbase_model: base",
    "karcher": "merge_method: karcher\nmodels: [a, b]\nbase_model: base",
    "stack": stacked(("a", 0, 2), ("a", 1, 2)) + "\nbase_model: base",
    "tied embeddings alone": ("merge_method: linear\nmodels: [tied]\nbase_model: tiedbase\nonly: [embed]"),
}


@pytest.mark.parametrize("case", OTHER_DONORS)
def test_a_base_of_another_vocabulary_gives_no_config(
    case: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    recipe = parse_recipe(yaml.safe_load(OTHER_DONORS[case]))
    first = "tied" if "tied" in case else "a"
    prepared = prepare(recipe)
    assert prepared.donor.label == first
    (told,) = [remark for remark in prepared.plan.remarks if "config and tokenizer are of" in remark]
    assert first in told and "base" in told
    prepared.close()
    run_recipe(recipe, tmp_path / "out")
    model, tokenizer = load(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer) and "<|turn|>" in tokenizer.get_vocab()


REFUSED = {
    "embeddings alone": (
        "merge_method: linear\nmodels: [a, b]\nbase_model: base\nonly: [embed]",
        ["'model.embed_tokens.weight'", "'lm_head.weight'", "(from base)"],
    ),
    "last has more": (stacked(("base", 0, 2), ("a", 1, 2)), ["'lm_head.weight'", "(from a)", "(from base)"]),
    "first is tied": (stacked(("tiedbase", 0, 2), ("a", 1, 2)), ["(from a)", "(from tiedbase)"]),
    "last is tied": (stacked(("a", 0, 2), ("tiedbase", 1, 2)), ["(from a)", "(from tiedbase)"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_two_vocabularies_in_one_output_are_refused_and_the_line_that_is_shown_mends_it(
    case: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    text, words = REFUSED[case]
    value = yaml.safe_load(text)
    with pytest.raises(PlanError) as caught:
        prepare(parse_recipe(value))
    for word in [*words, "'tokenizer: {source: union}'"]:
        assert word in str(caught.value), caught.value
    run_recipe(parse_recipe({**value, "tokenizer": {"source": "union"}}), tmp_path / "out")
    model, tokenizer = load(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "merge_method: linear\nmodels: [a, b]\nbase_model: wide",
            ["in wide", "a base_model of the size of a"],
        ),
        (stacked(("a", 0, 2)) + "\nbase_model: wide", ["in wide", "a base_model of the size of a"]),
        (stacked(("base", 0, 2), ("wide", 0, 1)), ["(from wide)", "in base", "models of one size"]),
        ("merge_method: linear\nmodels: [base]\nbase_model: deep", ["deep: gives", "has 3 layers", "has 2"]),
        ("merge_method: linear\nmodels: [deep]\nbase_model: base", ["base: gives", "has 2 layers", "has 3"]),
    ],
)
def test_other_sizes_than_the_configs_are_refused(
    text: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(PlanError) as caught:
        prepare(parse_recipe(yaml.safe_load(text)))
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_layers_that_the_config_does_not_count_may_be_missing(tmp_path: Path) -> None:
    """As layers that predict further tokens are, in fine-tunes of models that have some."""
    config = {**CONFIG, "num_hidden_layers": 2}
    more = {**SHAPES, "model.layers.2.mlp.up_proj.weight": (12, 8)}
    base = write_folder(tmp_path / "base", tensors(0, shapes=more), config=config)
    model = write_folder(tmp_path / "model", tensors(1), config=config)
    recipe = {"merge_method": "linear", "models": [str(model)], "base_model": str(base)}
    prepare(parse_recipe(recipe)).close()
