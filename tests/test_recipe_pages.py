"""What the documentation shows: recipes of docs/recipes.md run and load, docs/methods.md is the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_models.merge import load_recipes, run_recipes
from merge_models.merge.api.methods_page import methods_page
from merge_models.merge.strategies import STRATEGIES
from tests.helpers import write_folder
from tests.merge.checkpoint.test_stacked import llava
from tests.merge.tokenizer.test_alignment import _tokenizer

DOCS = Path(__file__).parent.parent / "docs"
RECIPES = re.findall(r"```yaml\n(.*?)```", (DOCS / "recipes.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the page names."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place, plain = tmp_path_factory.mktemp("models"), _tokenizer()
    told = _tokenizer(["<|turn|>", "<|end|>", "<|rare|>"])
    for seed, name in enumerate(("base", "math", "code", "chatty", "chat")):
        torch.manual_seed(seed)
        tokenizer = told if name == "chat" else plain
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=4,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(str(place / name))
        tokenizer.save_pretrained(str(place / name))
    for seed, name in enumerate(("seeing", "reading")):
        torch.manual_seed(seed)
        llava().save_pretrained(str(place / name))
    factors = {"lora_A.weight": torch.randn(2, 16), "lora_B.weight": torch.randn(16, 2)}
    target = "base_model.model.model.layers.1.self_attn.q_proj"
    write_folder(
        place / "code-lora", {f"{target}.{name}": value for name, value in factors.items()}, config=None
    )
    (place / "code-lora" / "model.safetensors").rename(place / "code-lora" / "adapter_model.safetensors")
    settings: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (place / "code-lora" / "adapter_config.json").write_text(json.dumps(settings))
    return place


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_every_recipe_of_the_page_runs_and_loads(
    number: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    (tmp_path / "recipe.yml").write_text(RECIPES[number])
    monkeypatch.chdir(place)
    recipes = load_recipes(tmp_path / "recipe.yml")
    run_recipes(recipes, tmp_path / "out")
    sees = "seeing" in recipes[0].model_names()
    kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model, told = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


def test_the_page_shows_every_part_of_the_language() -> None:
    page = "\n".join(RECIPES)
    for word in (
        "models:",
        "slices:",
        "modules:",
        "only:",
        "tokenizer:",
        "chat_template:",
        "layer_range",
        "\n---\n",
    ):
        assert word in page, word


def test_the_page_of_methods_is_the_codes() -> None:
    """``merge-models methods --markdown > docs/methods.md`` writes it again."""
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert page == methods_page()
    assert all(f"\n## {strategy.name}\n" in page for strategy in STRATEGIES)
