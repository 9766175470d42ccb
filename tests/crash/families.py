"""One merge of every family of strategies and kind of recipe, small enough to run thousands of times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.helpers import CONFIG, tensors, write_folder

SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (24, 16),
    **{
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(4)
        for name, shape in {
            "self_attn.q_proj": (16, 16),
            "mlp.up_proj": (32, 16),
            "mlp.down_proj": (16, 32),
            "input_layernorm": (16,),
        }.items()
    },
    "model.norm.weight": (16,),
    "lm_head.weight": (24, 16),
    "model.table.weight": (9000, 64),  # several blocks, and several pieces of a digest
    "model.empty": (0, 4),
}


@dataclass(frozen=True)
class Family:
    """A merge to interrupt: its recipes as YAML holds them, by the models' names."""

    name: str
    recipes: tuple[dict[str, Any], ...]


def _plain(method: str, base: bool = False, **more: Any) -> Family:
    recipe: dict[str, Any] = {"merge_method": method, "models": [{"model": f"m{i}"} for i in range(1, 4)]}
    return Family(method, ({**recipe, **({"base_model": "m0"} if base else {}), **more},))


def _named(name: str, family: Family) -> Family:
    return Family(name, family.recipes)


FAMILIES = (
    _plain("linear"),
    _named("stochastic rounding", _plain("linear", dtype="bfloat16", rounding="stochastic", seed=3)),
    _plain("task_arithmetic", base=True, parameters={"lambda": 0.7}),
    _plain("karcher"),
    _named("karcher by row", _plain("karcher", parameters={"per": "row"})),
    _plain("ties", base=True, parameters={"density": 0.4}),
    _named("ties of the model", _plain("ties", base=True, parameters={"density": 0.4, "scope": "model"})),
    _plain("dare_ties", base=True, parameters={"density": 0.5}, seed=11),
    _plain("della", base=True, parameters={"density": 0.5}, seed=11),
    _plain("orthogonal", base=True),
    _plain("wasserstein"),
    Family(
        "slices",
        (
            {
                "merge_method": "passthrough",
                "slices": [
                    {"sources": [{"model": "m0", "layer_range": [0, 3]}]},
                    {"sources": [{"model": "m1", "layer_range": [1, 4]}]},
                ],
            },
        ),
    ),
    _named("tokenizer union", _plain("linear", tokenizer={"source": "union"})),
    Family(
        "adapter",
        ({"merge_method": "linear", "models": [{"model": "m1+adapter"}, {"model": "m2"}]},),
    ),
    Family(
        "two recipes",
        (
            {"name": "first", "merge_method": "linear", "models": [{"model": "m0"}, {"model": "m1"}]},
            {"merge_method": "karcher", "models": [{"model": "first"}, {"model": "m2"}]},
        ),
    ),
)


def write_inputs(place: Path, dtype: torch.dtype = torch.float32) -> None:
    """Four siblings with a tokenizer each, and an adapter, in a folder that recipes are run in."""
    base = tensors(0, torch.float32, SHAPES)
    for seed in range(4):
        own = tensors(seed, torch.float32, SHAPES)
        state = {name: (base[name] + 0.05 * own[name]).to(dtype) for name in SHAPES}
        state["steps"] = torch.tensor([7])
        write_folder(place / f"m{seed}", state, config={**CONFIG, "num_hidden_layers": 4, "vocab_size": 24})
        _write_tokenizer(place / f"m{seed}", seed)
    module = "base_model.model.model.layers.0.mlp.up_proj"
    shapes = {f"{module}.lora_A.weight": (2, 16), f"{module}.lora_B.weight": (32, 2)}
    adapter = tensors(9, shapes=shapes)
    write_folder(place / "adapter", adapter, config=None)
    (place / "adapter/model.safetensors").rename(place / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (place / "adapter/adapter_config.json").write_text(json.dumps(settings))


def _write_tokenizer(folder: Path, seed: int) -> None:
    words = {word: number for number, word in enumerate([*"abcdefghijklmnopqrstuvw", f"own{seed}"])}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "a"}
    document = {"version": "1.0", "model": model, "added_tokens": [], "normalizer": None, "decoder": None}
    document |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None}
    document |= {"truncation": None, "padding": None}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "a"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def run_family(family: Family, out: Path, place: Path, **options: Any) -> None:
    """Runs a family's recipes, whose models lie in ``place``, into ``out``."""
    from merge_models.merge.api.several import run_recipes
    from merge_models.merge.recipes.recipe import load_recipes

    run_recipes(load_recipes(recipe_file(family, place)), out, **options)


def recipe_file(family: Family, place: Path) -> Path:
    """A family's recipes as a file, for models in ``place``."""
    file = place / f"{family.name.replace(' ', '-')}.yml"
    if not file.exists():
        file.write_text(yaml.safe_dump_all(_located(family.recipes, place), sort_keys=False))
    return file


def _located(recipes: tuple[dict[str, Any], ...], place: Path) -> list[Any]:
    def locate(name: str) -> str:
        return "+".join(str(place / part) if (place / part).exists() else part for part in name.split("+"))

    return _walk(list(recipes), locate)


def _walk(value: Any, locate: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        named = ("model", "base_model")
        return {
            k: locate(v) if k in named and isinstance(v, str) else _walk(v, locate) for k, v in value.items()
        }
    return [_walk(item, locate) for item in value] if isinstance(value, list) else value
