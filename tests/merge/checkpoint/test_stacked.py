"""Recipes of every kind on tiny models of many architectures: they plan, run, and load in transformers.

The kinds are those of mergekit's examples and tests; the models are random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge_models.merge import RecipeError, load_recipe, prepare, run_recipe

TINY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
TEXT: dict[str, Any] = {
    **TINY,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

START: dict[str, Any] = {"decoder_start_token_id": 0}
LAMBDA: dict[str, Any] = {"lambda": 0.5}


def causal(model_type: str, **own: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(model_type, **{"pad_token_id": 0, "bos_token_id": 1, **own})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    return make


def bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**TINY, intermediate_size=48))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
    return T5ForConditionalGeneration(T5Config(**sizes, **START))


def llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sight = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8, projection_dim=32,
    )  # fmt: skip
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=sight, text_config=LlamaConfig(**TEXT)))


HEADS = {"head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": causal("llama", **TEXT),
    "mistral": causal("mistral", **TEXT, sliding_window=16),
    "granite": causal("granite", **TEXT),
    "qwen3": causal("qwen3", **TEXT, **HEADS),
    "gemma3": causal("gemma3_text", **TEXT, **HEADS),
    "mixtral": causal("mixtral", **TEXT, **EXPERTS),
    "gpt2": causal("gpt2", **GPT2),
    "bert": bert,
    "t5": t5,
    "llava": llava,
}
LAYERED: dict[str, Callable[[], Any]] = {
    "qwen3_moe": causal(
        "qwen3_moe", **TEXT, **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        mlp_only_layers=[0],
    ),
    "llama4_text": causal(
        "llama4_text", **TEXT, **HEADS, intermediate_size_mlp=48, num_local_experts=2, moe_layers=[1]
    ),
    "lfm2": causal("lfm2", **TEXT, full_attn_idxs=[1]),
    "gpt_neo": causal(
        "gpt_neo", hidden_size=32, num_layers=2, num_heads=4, vocab_size=64, max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
    ),
}  # fmt: skip
"""Models of which a config says of single layers, by their numbers, what they are made of."""
STACKS = ("llama", "mistral", "granite", "qwen3", "gemma3", "mixtral", "gpt2")


def models(*names: str, **parameters: Any) -> dict[str, Any]:
    entries = [{"model": name, "parameters": dict(parameters)} for name in names]
    return {"models": entries}


def weighted(method: str, each: dict[str, Any] | None = None, base: str | None = "C", **whole: Any) -> dict:
    recipe: dict[str, Any] = {"merge_method": method, **models("A", "B", weight=0.4, **(each or {}))}
    recipe["models"][0]["parameters"]["weight"] = 0.6
    return recipe | ({"base_model": base} if base else {}) | ({"parameters": whole} if whole else {})


def unweighted(method: str, *names: str, base: str | None = "C", **whole: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {"merge_method": method, "models": [{"model": name} for name in names]}
    return recipe | ({"base_model": base} if base else {}) | ({"parameters": whole} if whole else {})


def sliced(*runs: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    sources = [[{"model": name, "layer_range": [start, stop]}] for name, start, stop in runs]
    return {"merge_method": "passthrough", "slices": [{"sources": source} for source in sources], **more}


RECIPES: dict[str, dict[str, Any]] = {
    "copy": unweighted("passthrough", "A", base=None),
    "scale": {
        "merge_method": "passthrough",
        **models("A", scale=[{"filter": "norm", "value": 0.0}, {"value": 1.0}]),
    },
    "linear": weighted("linear", base=None),
    "slerp": unweighted("slerp", "A", base="B", t=0.35),
    "slerp gradients": unweighted(
        "slerp",
        "A",
        base="B",
        t=[{"filter": "attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0]}, {"value": 0.5}],
    ),  # fmt: skip
    "nuslerp": weighted("nuslerp", base=None),
    "nuslerp rows": weighted("nuslerp", nuslerp_flatten=False),
    "nuslerp columns": weighted("nuslerp", base=None, nuslerp_flatten=False, nuslerp_row_wise=True),
    "multislerp": weighted("multislerp"),
    "karcher": unweighted("karcher", "A", "B", "C", base=None, max_iter=5, tol=1e-5),
    "task_arithmetic": weighted("task_arithmetic"),
    "ties": weighted("ties", {"density": 0.3}, normalize=True, int8_mask=True),
    "ties gradient": weighted("ties", {"density": [1, 0.7, 0.1]}),
    "dare_linear": weighted("dare_linear", {"density": 0.66}),
    "dare_ties": weighted("dare_ties", {"density": 0.66}),
    "breadcrumbs": weighted("breadcrumbs", {"density": 0.9, "gamma": 0.01}),
    "breadcrumbs_ties": weighted("breadcrumbs_ties", {"density": 0.9, "gamma": 0.01}),
    "della": weighted("della", {"density": 0.66, "epsilon": 0.05}, **LAMBDA),
    "della_linear": weighted("della_linear", {"density": 0.66, "epsilon": 0.05}),
    "sce": unweighted("sce", "A", "B", select_topk=0.5),
    "ram": unweighted("ram", "A", "B"),
    "ramplus_tl": unweighted("ramplus_tl", "A", "B", r=0.05, alpha=1),
    "model_stock": unweighted("model_stock", "A", "B"),
    "model_stock rows": unweighted("model_stock", "A", "B", filter_wise=True),
    "arcee_fusion": unweighted("arcee_fusion", "A"),
    "nearswap": unweighted("nearswap", "A", t=1e-4),
    "dtypes": weighted("linear", base=None) | {"dtype": "float32", "out_dtype": "bfloat16"},
    "references": {
        "merge_method": "linear",
        "models": [
            {"model": {"model": {"path": "A"}}, "parameters": {"weight": 1}},
            {"model": {"model": "B", "lora": None}, "parameters": {"weight": 2}},
        ],
    },
}
STACKED: dict[str, dict[str, Any]] = {
    "stack": sliced(("A", 0, 2), ("B", 0, 2)),
    "interleaved": sliced(("A", 0, 1), ("B", 0, 2), ("A", 1, 2), dtype="bfloat16"),
    "pruned": sliced(("A", 1, 2)),
    "merged slices": {
        "merge_method": "slerp",
        "slices": [{"sources": [{"model": m, "layer_range": [0, 2]} for m in ("A", "B")]}],
        "base_model": "A",
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    },
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each architecture with three random models A, B and C, made on first use."""
    root = tmp_path_factory.mktemp("models")

    def place(name: str) -> Path:
        if not (root / name).exists():
            for seed, letter in enumerate("ABC"):
                torch.manual_seed(seed)
                {**MODELS, **LAYERED}[name]().save_pretrained(root / name / letter)
        return root / name

    return place


def at(recipe: Any, place: Path) -> Any:
    """The recipe with the letters of models as paths."""
    if isinstance(recipe, dict):
        return {key: at(value, place) for key, value in recipe.items()}
    if isinstance(recipe, list):
        return [at(value, place) for value in recipe]
    return str(place / recipe) if recipe in ("A", "B", "C") else recipe


def run(recipe: dict[str, Any], place: Path, tmp_path: Path) -> Any:
    """Plans and runs a recipe; returns the model that transformers loads, all of whose weights are there."""
    import transformers

    file, out = tmp_path / "recipe.yml", tmp_path / "out"
    file.write_text(yaml.safe_dump(at(copy.deepcopy(recipe), place)))
    assert not prepare(load_recipe(file)).plan.dropped
    run_recipe(file, out)
    architectures = transformers.AutoConfig.from_pretrained(out).architectures
    assert architectures is not None
    (architecture,) = architectures
    kind = getattr(transformers, architecture)
    model, told = kind.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert all(bool(torch.isfinite(weight).all()) for weight in model.parameters())
    return model


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_kind_of_recipe_runs_on_llama(
    recipe: str, places: Callable[[str], Path], tmp_path: Path
) -> None:
    run(RECIPES[recipe], places("llama"), tmp_path)


@pytest.mark.parametrize("recipe", ["slerp gradients", "ties", "karcher", "model_stock"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama"])
def test_recipes_run_on_every_architecture(
    name: str, recipe: str, places: Callable[[str], Path], tmp_path: Path
) -> None:
    run(RECIPES[recipe], places(name), tmp_path)


@pytest.mark.parametrize("recipe", STACKED)
@pytest.mark.parametrize("name", [*STACKS, *LAYERED])
def test_stacks_load_with_as_many_layers(
    name: str, recipe: str, places: Callable[[str], Path], tmp_path: Path
) -> None:
    model = run(STACKED[recipe], places(name), tmp_path)
    wanted = {"stack": 4, "interleaved": 4, "pruned": 1, "merged slices": 2}[recipe]
    assert model.config.num_hidden_layers == wanted
    model(torch.tensor([[1, 2, 3]]))


def test_modules_of_a_model_that_sees_are_merged_apart(places: Callable[[str], Path], tmp_path: Path) -> None:
    place = places("llava")
    both = models("A", "B", weight=0.5)
    recipe = {
        "merge_method": "linear",
        "modules": {
            "text_decoder": both,
            "vision_tower": {"models": [{"model": "A", "parameters": {"weight": 1}}]},
            "multi_modal_projector": both,
        },
    }
    run(recipe, place, tmp_path)


SLICED_MODULES: dict[str, tuple[str, tuple[str, ...], Callable[[Any], tuple[int, int]]]] = {
    "text of llava": (
        "text_decoder",
        ("vision_tower", "multi_modal_projector"),
        lambda config: (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers),
    ),
    "vision of llava": (
        "vision_tower",
        ("text_decoder", "multi_modal_projector"),
        lambda config: (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers),
    ),
    "decoder of t5": (
        "decoder",
        ("encoder", "shared", "lm_head"),
        lambda config: (config.num_decoder_layers, config.num_layers),
    ),
    "encoder of t5": (
        "encoder",
        ("decoder", "shared", "lm_head"),
        lambda config: (config.num_layers, config.num_decoder_layers),
    ),
}


@pytest.mark.parametrize("case", SLICED_MODULES)
def test_one_module_is_sliced(case: str, places: Callable[[str], Path], tmp_path: Path) -> None:
    name, others, layers = SLICED_MODULES[case]
    stack = sliced(("A", 0, 2), ("B", 1, 2))["slices"]
    modules = {name: {"slices": stack}, **{other: {"models": [{"model": "A"}]} for other in others}}
    recipe = {"merge_method": "passthrough", "base_model": "A", "modules": modules}
    assert layers(run(recipe, places(case.split()[-1]), tmp_path).config) == (3, 2)


def test_references_may_be_maps(tmp_path: Path) -> None:
    entry = {"model": {"path": "org/x", "revision": "main"}, "lora": {"path": "org/y", "revision": "v2"}}
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump({"merge_method": "linear", "models": [{"model": entry}, {"model": "z"}]}))
    assert load_recipe(file).model_names() == ["org/x@main+org/y@v2", "z"]
    file.write_text(file.read_text().replace("revision", "revison"))
    with pytest.raises(RecipeError, match="revison"):
        load_recipe(file)
