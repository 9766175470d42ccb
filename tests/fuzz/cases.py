"""One case from its number: folders as transformers writes them, one thing in them wrong, one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from tests.helpers import tensors, write_folder, write_json

from .mutate import (
    REPLACEMENTS,
    SECRET,
    mangled,
    mutate_json,
    mutate_safetensors,
    mutate_text,
    mutated,
    tangled,
    text_of,
)

SHAPES = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "lm_head.weight": (12, 8),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "num_hidden_layers": 2,
    "vocab_size": 12,
    "eos_token_id": 1,
    "layer_types": ["full", "sliding"],
    "text_config": {"vocab_size": 12, "tie_word_embeddings": True},
}
METHODS = (
    "linear", "karcher", "slerp", "ties", "dare_ties", "task_arithmetic", "breadcrumbs", "model_stock",
    "orthogonal", "della", "sce", "norm_mean", "stochastic", "wasserstein", "nuslerp",
)  # fmt: skip
KINDS = ("header", "shards", "config", "tokenizer", "adapter", "recipe", "files")


def write_templates(place: Path) -> None:
    """The sound inputs that cases are made from: models a and b, a sharded one, an adapter, a canary."""
    for seed, name in enumerate(("a", "b", "base")):
        small = {"generation_config.json": '{"eos_token_id": 1}', "modules.json": "[]"}
        folder = write_folder(
            place / "models" / name,
            tensors(seed, shapes=SHAPES),
            config=CONFIG,
            shards=2 if name == "base" else 1,
            files={**small, "1_Pooling/config.json": "{}"},
        )
        _write_tokenizer(folder, 10 + seed)
    adapter = place / "models" / "lora"
    adapter.mkdir()
    module = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(12, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["up_proj"],
        "rank_pattern": {"x": 3},
    }
    write_json(adapter / "adapter_config.json", {**settings, "alpha_pattern": {}, "use_rslora": False})
    (place / "canary").mkdir()
    (place / "canary" / "secret.json").write_text(f'{{"{SECRET}": 1}}')


def _write_tokenizer(folder: Path, count: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({f"{chr(97 + n)}": n for n in range(count)}, [], unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="a", chat_template="{{ messages }}"
    )
    tokenizer.add_tokens(["<x>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    write_json(folder / "special_tokens_map.json", {"unk_token": "a"})
    write_json(folder / "added_tokens.json", {"<x>": count})


def recipes(random: Random) -> dict[str, Any]:
    """A sound recipe in one of the dialect's forms."""
    plain: dict[str, Any] = {
        "merge_method": random.choice(METHODS),
        "models": [{"model": "models/a", "parameters": {"weight": 0.5}}, {"model": "models/b"}],
        "base_model": "models/base",
    }
    kind = random.randrange(6)
    if kind == 0:
        plain["parameters"] = {"weight": [{"filter": "mlp", "value": [0, 0.5, 1]}, {"value": 0.3}]}
        plain |= {"merge_method": "linear", "dtype": "bfloat16", "only": ["*mlp*", "layers:0-1"]}
    elif kind == 1:
        sources = [{"model": f"models/{n}", "layer_range": [0, 2], "parameters": {"weight": 1}} for n in "ab"]
        return {
            "merge_method": "linear",
            "slices": [{"sources": sources}, {"sources": sources[:1]}],
            "dtype": "float16",
        }
    elif kind == 2:
        tokens = {"b": {"source": "models/a", "force": True}, "zz": {"source": {"kind": "zero"}}}
        plain |= {
            "merge_method": "linear",
            "tokenizer": {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8},
        }
    elif kind == 3:
        plain |= {"merge_method": "linear", "tokenizer_source": "base", "chat_template": "chatml", "seed": 7}
    elif kind == 4:
        part = {"models": [{"model": "models/a"}, {"model": "models/b"}]}
        return {"merge_method": "linear", "modules": {"model": part, "lm_head": part}}
    return plain


def _header(place: Path, random: Random) -> None:
    mutate_safetensors(place / "models" / random.choice("ab") / "model.safetensors", random)


def _shards(place: Path, random: Random) -> None:
    folder = place / "models" / "base"
    files = sorted(folder.glob("*.safetensors"))
    if random.random() < 0.7:
        mutate_json(folder / "model.safetensors.index.json", random)
    else:
        mutate_safetensors(random.choice(files), random)


def _config(place: Path, random: Random) -> None:
    folder = place / "models" / random.choice(("a", "b", "base"))
    name = random.choice(
        ("config.json", "config.json", "config.json", "generation_config.json", "modules.json")
    )
    mutate_json(folder / name, random)


def _tokenizer(place: Path, random: Random) -> None:
    folder = place / "models" / random.choice(("a", "b", "base"))
    names = [
        "tokenizer.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ]
    file = folder / random.choice([*names, "chat_template.jinja"])
    (mutate_json if file.suffix == ".json" and random.random() < 0.8 else mutate_text)(file, random)


def _adapter(place: Path, random: Random) -> None:
    folder = place / "models" / "lora"
    if random.random() < 0.6:
        mutate_json(folder / "adapter_config.json", random)
    else:
        mutate_safetensors(folder / "adapter_model.safetensors", random)


def _files(place: Path, random: Random) -> None:
    files = sorted(file for file in (place / "models").rglob("*") if file.is_file())
    file = random.choice(files)
    if random.random() < 0.15:
        shutil.rmtree(file.parent)
        file.parent.symlink_to(random.choice(("/etc", "a", ".", "nowhere")))
    else:
        REPLACEMENTS[random.choice(sorted(REPLACEMENTS))](file)


def _untouched(place: Path, random: Random) -> None:
    """The recipe is what is wrong."""


_MUTATIONS: dict[str, Callable[[Path, Random], None]] = {
    "header": _header, "shards": _shards, "config": _config, "tokenizer": _tokenizer, "adapter": _adapter,
    "recipe": _untouched, "files": _files,
}  # fmt: skip


def make(number: int, place: Path) -> list[str]:
    """Lays a case out in a folder that holds the templates.

    Returns:
        The command's arguments; the recipe is ``recipe.yml``, paths are relative to ``place``.
    """
    random = Random(number)
    kind = KINDS[number % len(KINDS)]
    _MUTATIONS[kind](place, random)
    recipe = recipes(random)
    if kind == "recipe":
        text = text_of(mutated(recipe, random), random)
        if random.random() < 0.3:
            text = mangled(yaml.safe_dump(recipe).encode(), random)
        elif random.random() < 0.3:
            text = yaml.safe_dump(tangled(recipe, random)).encode()
    else:
        recipe = {
            "merge_method": random.choice(METHODS),
            "models": [{"model": "models/a"}, {"model": "models/b"}],
        }
        recipe["base_model"] = "models/base"
        if recipe["merge_method"] in ("slerp", "nuslerp"):
            del recipe["base_model"]
        if kind == "adapter":
            recipe["models"][0]["model"] = "models/a+models/lora"
        if kind == "tokenizer" or random.random() < 0.2:
            recipe |= {"tokenizer": {"source": random.choice(("union", "base"))}, "chat_template": "auto"}
        text = yaml.safe_dump(recipe).encode()
    (place / "recipe.yml").write_bytes(text)
    if random.random() < 0.1:
        return ["plan", "recipe.yml", *(["--json"] if random.random() < 0.5 else [])]
    options = ["--threads", random.choice("12"), "--on-nonfinite", random.choice(("error", "keep"))]
    return [
        "run",
        "recipe.yml",
        "-o",
        "outs/out",
        *options,
        "--shard-size",
        random.choice(("5GB", "300", "1")),
    ]
