"""The features of recipes, each on a small fixed set, for the digests of benchmarks.bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from merge_models.merge import load_recipes, merge, run_recipe, run_recipes
from tests.helpers import CONFIG, read_folder, write_folder

LAYERS = 4
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (11, 8),
    **{
        f"model.layers.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in (("mlp.up_proj.weight", (12, 8)), ("input_layernorm.weight", (8,)))
    },
    "model.norm.weight": (8,),
    "lm_head.weight": (11, 8),
}
HERE = {**CONFIG, "num_hidden_layers": LAYERS, "vocab_size": 11}


def weights(
    seed: int, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    """Returns a model's weights, from raw words by exact arithmetic; seed 0 is the base of the others."""
    state = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape))
        shared, own = (np.random.PCG64(s).random_raw(count) for s in (number, 1000 + 50 * seed + number))
        values = (shared >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
        if seed:
            values += 0.1 * ((own >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5)
        state[name] = torch.from_numpy(values).reshape(shape).to(dtype)
    return state


def models(place: Path, count: int = 3, dtype: torch.dtype = torch.bfloat16, **more: Any) -> list[str]:
    """Writes models ``m0`` (the base) and on; returns their paths."""
    config = more.pop("config", HERE)
    return [
        str(write_folder(place / f"m{n}", weights(n, dtype), config=config, **more)) for n in range(count)
    ]


def entries(paths: list[str], *weight: float) -> list[dict[str, Any]]:
    """Returns the models of a recipe, with weights where some are given."""
    own = [{"parameters": {"weight": w}} for w in weight] or [{} for _ in paths]
    return [{"model": path, **more} for path, more in zip(paths, own, strict=True)]


def outcome(out: Path) -> dict[str, Any]:
    """Returns an output's tensors, and those of its small files that hold no paths or versions."""
    files = [file for file in ("config.json", "model.safetensors.index.json") if (out / file).is_file()]
    return {**read_folder(out), **{file: json.loads((out / file).read_text()) for file in files}}


def run(place: Path, recipe: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Runs a recipe and returns its outcome."""
    run_recipe(recipe, place / "out", threads=2, **options)
    return outcome(place / "out")


def _slices(place: Path) -> dict[str, Any]:
    base, one, two = models(place)
    sources = [
        {"model": one, "layer_range": [0, 3], "parameters": {"weight": [0.2, 0.8]}},
        {"model": two, "layer_range": [1, 4], "parameters": {"weight": 0.5}},
    ]
    last = [{"model": base, "layer_range": [2, 4], "parameters": {"weight": 1}}]
    return run(place, {"merge_method": "linear", "slices": [{"sources": sources}, {"sources": last}]})


def _stack(place: Path) -> dict[str, Any]:
    paths = models(place, 2)
    runs = [(paths[0], [0, 3]), (paths[1], [1, 4])]
    slices = [{"sources": [{"model": path, "layer_range": layers}]} for path, layers in runs]
    return run(place, {"merge_method": "passthrough", "slices": slices})


def _ties_slices(place: Path) -> dict[str, Any]:
    base, one, two = models(place)
    layers = {"layer_range": [0, 4]}
    sources = [{"model": path, **layers} for path in (base, one, two)]
    recipe = {"merge_method": "ties", "base_model": base, "slices": [{"sources": sources}]}
    return run(place, {**recipe, "parameters": {"density": [0.3, 0.9], "weight": 0.6}})


def _filters(place: Path) -> dict[str, Any]:
    base, one, two = models(place)
    weight = [{"filter": "mlp", "value": [0.1, 0.9]}, {"filter": "layers:1-2", "value": 0.4}, {"value": 0.7}]
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "parameters": {"lambda": 0.8}}
    return run(
        place, {**recipe, "models": [{"model": one, "parameters": {"weight": weight}}, {"model": two}]}
    )


def _only(place: Path) -> dict[str, Any]:
    base, one, two = models(place)
    recipe = {"merge_method": "karcher", "base_model": base, "models": entries([one, two])}
    return run(place, {**recipe, "only": ["*.mlp.*"], "dtype": "float32"})


def _modules(place: Path) -> dict[str, Any]:
    shapes = {f"{part}.{name}": shape for part in ("vision_tower", "language_model") for name, shape in
              (("layers.0.w.weight", (6, 4)), ("norm.weight", (4,)))}  # fmt: skip
    paths = [
        str(write_folder(place / f"m{n}", weights(n, torch.float32, shapes), config=None)) for n in range(2)
    ]
    modules = {
        "text_decoder": {"models": entries(paths, 0.9, 0.1)},
        "vision_tower": {"models": entries(paths, 0.2, 0.8)},
    }
    return run(place, {"merge_method": "linear", "modules": modules})


def _adapter(place: Path) -> dict[str, Any]:
    base, other = models(place, 2, torch.float32)
    module = "model.layers.1.mlp.up_proj"
    factors = weights(5, torch.float32, {"lora_A": (3, 8), "lora_B": (12, 3)})
    (place / "lora").mkdir()
    save_file({f"base_model.model.{module}.{name}.weight": t for name, t in factors.items()},
              place / "lora" / "adapter_model.safetensors")  # fmt: skip
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["up_proj"]}
    (place / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    return run(place, {"merge_method": "linear", "models": entries([f"{base}+{place / 'lora'}", other])})


def _tokenizers(place: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    paths = []
    for number, words in enumerate((["a", "b", "c", "d"], ["b", "e", "a", "f", "g"])):
        shapes = {**SHAPES, "model.embed_tokens.weight": (len(words), 8), "lm_head.weight": (len(words), 8)}
        config = {**HERE, "vocab_size": len(words)}
        folder = write_folder(place / f"m{number}", weights(number, torch.bfloat16, shapes), config=config)
        made = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token=words[0]).save_pretrained(folder)
        paths.append(str(folder))
    return run(place, {"merge_method": "linear", "models": entries(paths), "tokenizer_source": "union"})


def _tied(place: Path) -> dict[str, Any]:
    shapes = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    config = {**HERE, "tie_word_embeddings": True}
    tied = str(write_folder(place / "m0", weights(0, torch.float16, shapes), config=config))
    own = str(write_folder(place / "m1", weights(1, torch.float16), config=HERE))
    return run(place, {"merge_method": "linear", "models": entries([own, tied], 0.25, 0.75)})


def _shards(place: Path) -> dict[str, Any]:
    return run(place, {"merge_method": "linear", "models": entries(models(place, shards=3))}, shard_size=600)


def _dtypes(place: Path) -> dict[str, Any]:
    recipe = {"merge_method": "linear", "models": entries(models(place)), "dtype": "float32"}
    return run(place, {**recipe, "out_dtype": "float16", "rounding": "stochastic", "seed": 3})


def _whole_numbers(place: Path) -> dict[str, Any]:
    states = [{**weights(n, torch.float32), "steps": torch.arange(5), "mask": torch.tensor([True, False])}
              for n in range(2)]  # fmt: skip
    paths = [str(write_folder(place / f"m{n}", state, config=HERE)) for n, state in enumerate(states)]
    return run(place, {"merge_method": "linear", "models": entries(paths)})


def _scope(method: str, **parameters: Any) -> Callable[[Path], dict[str, Any]]:
    def feature(place: Path) -> dict[str, Any]:
        base, *others = models(place, 4)
        recipe = {"merge_method": method, "base_model": base, "models": entries(others)}
        return run(place, {**recipe, "parameters": {"scope": "model", **parameters}})

    return feature


def _base_alone(place: Path) -> dict[str, Any]:
    (base,) = models(place, 1)
    return run(place, {"merge_method": "ties", "base_model": base, "models": entries([base])})


def _base_listed(method: str, **parameters: Any) -> Callable[[Path], dict[str, Any]]:
    def feature(place: Path) -> dict[str, Any]:
        base, one = models(place, 2)
        recipe = {"merge_method": method, "base_model": base, "models": entries([one, base])}
        return run(place, {**recipe, "parameters": parameters})

    return feature


def _several(place: Path) -> dict[str, Any]:
    base, one, two = models(place)
    first = {"name": "first", "merge_method": "linear", "models": entries([one, two])}
    last = {"merge_method": "dare_ties", "base_model": base, "models": entries(["first", one]), "seed": 5,
            "parameters": {"density": 0.5}}  # fmt: skip
    (place / "recipes.yml").write_text(yaml.safe_dump_all([first, last]))
    run_recipes(load_recipes(place / "recipes.yml"), place / "out", threads=2)
    return outcome(place / "out")


def _pickle(place: Path) -> dict[str, Any]:
    paths = models(place, 2)
    folder = place / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HERE))
    torch.save(weights(4, torch.bfloat16), folder / "pytorch_model.bin")
    recipe = {"merge_method": "linear", "models": entries([*paths, str(folder)])}
    return run(place, recipe, allow_pickle=True)


def _kept(place: Path) -> dict[str, Any]:
    state = weights(1, torch.float32)
    state["model.norm.weight"][2] = float("nan")
    paths = [*models(place, 1, torch.float32), str(write_folder(place / "bad", state, config=HERE))]
    return run(place, {"merge_method": "norm_mean", "models": entries(paths)}, on_nonfinite="keep")


def _modules_in_memory(place: Path) -> dict[str, Any]:
    del place
    from merge_models.merge import strategies

    nets = [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)) for _ in range(3)]
    shapes = {name: tuple(t.shape) for name, t in nets[0].state_dict().items() if t.ndim}
    for number, net in enumerate(nets):
        net.load_state_dict(weights(number, torch.float32, shapes), strict=False)
    merged = merge(nets[1:], strategies.TaskArithmetic(lambda_=0.5), base=nets[0], dtype="bfloat16")
    return dict(cast("dict[str, Tensor]", merged))


def _tied_in_memory(place: Path) -> dict[str, Any]:
    del place
    from merge_models.merge import strategies

    states = [weights(n, torch.float32) for n in range(3)]
    for state in states:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    listed = strategies.Karcher(origin="base", weight=(0.2, 0.3, 0.5))
    return dict(cast("dict[str, Tensor]", merge([states[1], states[0], states[2]], listed, base=states[0])))


FEATURES: dict[str, tuple[bool, Callable[[Path], dict[str, Any]]]] = {
    "slices": (True, _slices),
    "stack": (True, _stack),
    "ties in slices": (True, _ties_slices),
    "filters and gradients": (True, _filters),
    "only": (False, _only),
    "modules": (True, _modules),
    "adapter": (False, _adapter),
    "tokenizers": (True, _tokenizers),
    "tied head": (True, _tied),
    "shards": (True, _shards),
    "dtypes": (True, _dtypes),
    "whole numbers": (True, _whole_numbers),
    "scope ties": (True, _scope("ties", density=0.4)),
    "scope pcb": (True, _scope("pcb", ratio=0.3)),
    "scope ramplus": (True, _scope("ramplus_tl", epsilon=0.01)),
    "base alone": (True, _base_alone),
    "slerp with its base": (False, _base_listed("slerp", t=0.3)),
    "nearswap with its base": (True, _base_listed("nearswap", t=0.01)),
    "linear with its base": (True, _base_listed("linear")),
    "several recipes": (True, _several),
    "pickle": (True, _pickle),
    "kept NaN": (False, _kept),
    "modules in memory": (True, _modules_in_memory),
    "tied in memory": (False, _tied_in_memory),
}
"""By name: whether the result is the same on every machine, and what gives it."""
