"""Recipes of slices and modules: where gradients run, what stands outside the layers, whose config."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from merge_models.merge import PlanError, RecipeError, prepare, run_recipe
from merge_models.merge.checkpoint import layer_indices
from merge_models.merge.checkpoint.layers import place_of
from merge_models.merge.checkpoint.stacked import Stack, stacked_config
from merge_models.merge.cli import main
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.recipes.mergekit import METHODS
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.strategies import STRATEGIES, BaseModel
from merge_models.merge.strategies.registry import find_strategy
from tests.helpers import CONFIG, read_folder, write_folder

EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = "model.layers.{}.mlp.up_proj.weight"


def filled(value: float, layers: int, head: bool = True) -> dict[str, Tensor]:
    """A model all of whose elements are ``value``."""
    shapes = {EMBED: (11, 8), **{LAYER.format(i): (8, 8) for i in range(layers)}, NORM: (8,), HEAD: (11, 8)}
    return {name: torch.full(shape, value) for name, shape in shapes.items() if head or name != HEAD}


def config_of(layers: int, **more: Any) -> dict[str, Any]:
    return {**CONFIG, "num_hidden_layers": layers, **more}


def write(place: Path, state: dict[str, Tensor], config: dict[str, Any]) -> str:
    return str(write_folder(place, state, config=config))


def source(model: str, start: int, stop: int, weight: Any = None) -> dict[str, Any]:
    own = {} if weight is None else {"parameters": {"weight": weight}}
    return {"model": model, "layer_range": [start, stop], **own}


def assert_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def made(recipe: dict[str, Any], out: Path) -> dict[str, Tensor]:
    run_recipe(parse_recipe(recipe), out)
    return read_folder(out)


# mergekit's name for the module of a model without modules

WHOLE: dict[str, dict[str, Any]] = {
    "models": {"models": [{"model": "1.0", "parameters": {"weight": [0, 3]}}, {"model": "2.0"}]},
    "slices": {"slices": [{"sources": [source("2.0", 1, 3), source("1.0", 0, 2, 3)]}]},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_default_module_is_the_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 2.0, 5.0):
        write(tmp_path / str(value), filled(value, 3), config_of(3))
    told = {"merge_method": "linear", "base_model": "5.0", "parameters": {"weight": 1}}
    plain = made({**told, **WHOLE[kind]}, tmp_path / "plain")
    default = {**told, "modules": {"default": WHOLE[kind]}}
    assert_same_tensors(made(default, tmp_path / "default"), plain)
    assert (
        prepare(parse_recipe(default)).plan.notes == prepare(parse_recipe({**told, **WHOLE[kind]})).plan.notes
    )
    own = {
        "default": {**WHOLE[kind], "parameters": {"weight": 0.5}}
    }  # before the recipe's, after the models'
    assert float(made({**told, "modules": own}, tmp_path / "own")[LAYER.format(1)].mean()) != float(
        plain[LAYER.format(1)].mean()
    )


def test_the_default_module_is_what_no_other_has(tmp_path: Path) -> None:
    low, high = (write(tmp_path / str(v), filled(v, 3), config_of(3)) for v in (0.0, 1.0))
    for named, its in (("lm_head", {HEAD}), ("model.layers", set(map(LAYER.format, range(3))))):
        modules = {"default": {"models": [{"model": low}]}, named: {"models": [{"model": high}]}}
        merged = made({"merge_method": "passthrough", "modules": modules}, tmp_path / named)
        assert {name for name, value in merged.items() if bool((value == 1).all())} == its


# Gradients: of mergekit's figures (0.1.5, these very recipes) all but the final norm's and head's


def slices(low: str, high: str, weight: Any = None, **level: Any) -> list[dict[str, Any]]:
    runs = [(0, 3), (3, 5)]
    return [
        {"sources": [source(low, *run, 0), source(high, run[0], run[1], weight)], **level} for run in runs
    ]


PER_SLICE = [0, 0, 0.5, 1, 0, 1]


@pytest.mark.parametrize("level", ["source", "slice", "module", "recipe"])
def test_gradients_run_through_each_slice(level: str, tmp_path: Path) -> None:
    low, high = (write(tmp_path / str(v), filled(v, 5), config_of(5)) for v in (0.0, 1.0))
    weight = {"parameters": {"weight": ["0", 1.0]}}
    runs = slices(low, high, *([[0, 1]] if level == "source" else []), **(weight if level == "slice" else {}))
    normalize = {"parameters": {"normalize": False}}
    recipe: dict[str, Any] = {"merge_method": "linear", "slices": runs, **normalize}
    if level == "recipe":
        recipe["parameters"] = {**weight["parameters"], "normalize": False}
    if level == "module":
        text = {"slices": runs, **weight}
        recipe = {"merge_method": "linear", "modules": {"text_decoder": text}, **normalize}
    out = made(recipe, tmp_path / "out")
    found = [float(out[name].flatten()[0]) for name in (EMBED, *map(LAYER.format, range(5)))]
    assert found == PER_SLICE
    assert {float(out[name].flatten()[0]) for name in (NORM, HEAD)} == {1.0}
    assert any(note.startswith("gradients end at") for note in prepare(parse_recipe(recipe)).plan.notes)


GRADIENTS: dict[str, tuple[Any, list[float]]] = {
    "a slice of one layer takes the last value": (
        [((0, 1), [0, 1]), ((1, 5), [0, 0.3, 1])],
        [1, 0, 0.2, 8 / 15, 1],
    ),
    "numbers that YAML reads as words": ([((0, 5), ["1e-1", "9e-1"])], [0.1, 0.3, 0.5, 0.7, 0.9]),
    "some of them": ([((0, 5), ["1e-1", 0.9])], [0.1, 0.3, 0.5, 0.7, 0.9]),
    "in a filter": ([((0, 5), [{"filter": "mlp", "value": ["0", "1.e+0"]}])], [0, 0.25, 0.5, 0.75, 1]),
    "names in the source": (
        [((2, 5), [{"filter": f"layers.{i}.", "value": (i + 1) / 4} for i in (0, 2)])],
        [0.75, 1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GRADIENTS)
def test_values_by_layer(case: str, tmp_path: Path) -> None:
    runs, values = GRADIENTS[case]
    high = write(tmp_path / "1", filled(1.0, 5), config_of(5))
    parts = [{"sources": [source(high, run[0], run[1], weight)]} for run, weight in runs]
    recipe = {"merge_method": "linear", "slices": parts, "parameters": {"normalize": False}}
    out = made(recipe, tmp_path / "out")
    assert [float(out[LAYER.format(i)][0, 0]) for i in range(len(values))] == pytest.approx(values)


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ([True, False], [0.5, 0.5, 1.0]),
        ([False, True], [1.0, 1.0, 0.5]),
        ([True, False, True], [0.5, 1, 0.5]),
    ],
)
def test_booleans_are_picked_by_layer(values: list[bool], shares: list[float], tmp_path: Path) -> None:
    low, high = (write(tmp_path / str(v), filled(v, 3), config_of(3)) for v in (0.0, 1.0))
    recipe = {
        "merge_method": "linear",
        "models": [low, high],
        "parameters": {"normalize": values, "weight": 1},
    }
    out = made(recipe, tmp_path / "out")
    assert [float(out[LAYER.format(i)][0, 0]) for i in range(3)] == shares


# What stands outside the layers

FIRST_NAMES = """
    model.embed_tokens.weight transformer.wte.weight transformer.wpe.weight gpt_neox.embed_in.weight
    transformer.word_embeddings.weight transformer.word_embeddings_layernorm.weight
    model.tok_embeddings.weight
    bert.embeddings.word_embeddings.weight bert.embeddings.LayerNorm.weight bert.embeddings.position_ids
    bert.embeddings.token_type_embeddings.weight model.decoder.embed_positions.weight shared.weight
    model.decoder.project_in.weight model.encoder.layernorm_embedding.weight model.encoder.conv1.weight
    encoder.embed_tokens.weight model.embed_tokens_per_layer.weight model.per_layer_model_projection.weight
    model.visual.patch_embed.proj.weight vision_model.embeddings.class_embedding
    vision_tower.patch_conv.weight
    vision_model.pre_layrnorm.weight vision_tower.ln_pre.weight vit.embeddings.cls_token cls_token pos_embed
    visual.positional_embedding backbone.embeddings.weight model.embeddings.norm.weight rwkv.emb.weight
    esm.embeddings.layer_norm.weight text_model.embeddings.token_embedding.weight stem.conv.weight
    encoder.embedding_hidden_mapping_in.weight electra.embeddings_project.weight
""".split()
LAST_NAMES = """
    model.norm.weight lm_head.weight lm_head.bias language_model.lm_head.weight embed_out.weight
    gpt_neox.final_layer_norm.weight model.embedding_norm.weight transformer.ln_f.weight
    backbone.norm_f.weight
    model.final_layernorm.weight output.weight output_embeddings.weight transformer.output_layer.weight
    score.weight classifier.weight classifier.dense.weight bert.pooler.dense.weight head.weight
    cls.predictions.transform.dense.weight cls.predictions.decoder.weight qa_outputs.weight proj_out.weight
    vision_model.post_layernorm.weight vision_model.head.probe model.decoder.project_out.weight logit_scale
    text_projection.weight visual.merger.ln_q.weight final_logits_bias decoder.final_layer_norm.weight
    esm.encoder.emb_layer_norm_after.weight vision_encoder.neck.conv1.weight system.w ecosystem_head.weight
""".split()


@pytest.mark.parametrize(("names", "is_first"), [(FIRST_NAMES, True), (LAST_NAMES, False)])
def test_what_comes_before_the_layers_and_what_after(names: list[str], is_first: bool) -> None:
    assert [name for name in names if place_of(name).is_first != is_first] == []
    assert not any(place_of(f"model.layers.3.{name}").is_first for name in names)


def test_a_head_that_is_called_an_embedding_comes_from_the_last_slice(tmp_path: Path) -> None:
    names = {
        EMBED: "gpt_neox.embed_in.weight",
        HEAD: "embed_out.weight",
        NORM: "gpt_neox.final_layer_norm.weight",
    }
    first, last = (
        write(tmp_path / str(v), {names.get(n, n): t for n, t in filled(v, 2).items()}, config_of(2))
        for v in (0.0, 1.0)
    )
    stack = [{"sources": [source(first, 0, 1)]}, {"sources": [source(last, 1, 2)]}]
    out = made({"merge_method": "passthrough", "slices": stack}, tmp_path / "out")
    assert {name: float(out[own].flatten()[0]) for name, own in names.items()} == {EMBED: 0, HEAD: 1, NORM: 1}


SLICED_HEADS: dict[str, tuple[str, list[list[str]], float | None]] = {
    "untied, then tied": ("passthrough", [["A"], ["t"]], 1.0),
    "tied, then untied": ("passthrough", [["t"], ["A"]], 0.0),
    "all tied": ("passthrough", [["t"], ["t"]], None),
    "tied and untied in one slice": ("linear", [["t", "A"]], 0.5),
    "untied and tied in one slice": ("linear", [["A", "t"]], 0.5),
    "untied only in the first slice": ("linear", [["A", "t"], ["t", "t"]], 1.0),
}


@pytest.mark.parametrize("case", SLICED_HEADS)
def test_no_head_is_lost_in_slices(case: str, tmp_path: Path) -> None:
    """A (zeros) has a head of its own, t (ones) is tied: its head is its embedding."""
    method, runs, value = SLICED_HEADS[case]
    made_of = {"A": (filled(0.0, 2), False), "t": (filled(1.0, 2, head=False), True)}
    for name, (state, is_tied) in made_of.items():
        write(tmp_path / name, state, config_of(2, tie_word_embeddings=is_tied))
    step = 2 // len(runs)
    parts = [
        {"sources": [source(str(tmp_path / name), i * step, (i + 1) * step) for name in run]}
        for i, run in enumerate(runs)
    ]
    recipe = parse_recipe({"merge_method": method, "slices": parts})
    prepared = prepare(recipe)
    assert not prepared.plan.dropped
    assert prepared.config()["tie_word_embeddings"] is (value is None)
    out = made(recipe.document(), tmp_path / "out")
    assert (None if HEAD not in out else float(out[HEAD][0, 0])) == value


def test_what_the_deciding_slice_lacks_is_dropped_aloud(tmp_path: Path) -> None:
    extra = {**filled(0.0, 2), "extra.bias": torch.ones(3)}
    first = write(tmp_path / "a", extra, config_of(2))
    last = write(tmp_path / "b", filled(1.0, 2), config_of(2))
    stack = [{"sources": [source(first, 0, 1)]}, {"sources": [source(last, 1, 2)]}]
    plan = prepare(parse_recipe({"merge_method": "passthrough", "slices": stack})).plan
    assert plan.dropped == (("extra.bias", first, f"{last}, which decides here, has none"),)


# The config: each module's part follows its own stack

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "text and vision": (
        {
            "hidden_size": 3,
            "text_config": {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]},
            "vision_config": {"num_hidden_layers": 2, "sizes": [1, 2]},
        },
        {"language_model.model.layers.": (3, [0, 1, 2, 1, 2]), "vision_tower.encoder.layers.": (2, None)},
        {
            "hidden_size": 3,
            "text_config": {"num_hidden_layers": 5, "layer_types": ["a", "b", "c", "b", "c"]},
            "vision_config": {"num_hidden_layers": 2, "sizes": [1, 2]},
        },
    ),
    "both": (
        {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2, "sizes": [1, 2]}},
        {"model.layers.": (2, [0]), "model.visual.blocks.": (2, [1, 0, 1])},
        {"text_config": {"num_hidden_layers": 1}, "vision_config": {"depth": 3, "sizes": [2, 1, 2]}},
    ),
    "text in the config itself": (
        {"num_hidden_layers": 2, "vision_config": {"num_hidden_layers": 2}},
        {"model.layers.": (2, [0, 1, 1]), "visual.blocks.": (2, None)},
        {"num_hidden_layers": 3, "vision_config": {"num_hidden_layers": 2}},
    ),
    "the decoder of T5": (
        {"num_layers": 2, "num_decoder_layers": 2},
        {"encoder.block.": (2, None), "decoder.block.": (2, [0, 1, 0, 1])},
        {"num_layers": 2, "num_decoder_layers": 4},
    ),
    "the encoder of T5": (
        {"num_layers": 2, "num_decoder_layers": 2},
        {"encoder.block.": (2, [1]), "decoder.block.": (2, None)},
        {"num_layers": 1, "num_decoder_layers": 2},
    ),
    "the encoder of BART": (
        {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2, "decoder_scales": [1, 2]},
        {"model.encoder.layers.": (2, [1]), "model.decoder.layers.": (2, None)},
        {"encoder_layers": 1, "decoder_layers": 2, "num_hidden_layers": 1, "decoder_scales": [1, 2]},
    ),
    "the decoder of BART": (
        {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2, "decoder_scales": [1, 2]},
        {"model.encoder.layers.": (2, None), "model.decoder.layers.": (2, [1])},
        {"encoder_layers": 2, "decoder_layers": 1, "num_hidden_layers": 2, "decoder_scales": [2]},
    ),
    "a decoder alone": (
        {"num_hidden_layers": 2},
        {"model.decoder.layers.": (2, [1])},
        {"num_hidden_layers": 1},
    ),
    "lists of something else": (
        {"n_layer": 2, "architectures": ["A", "B"], "eos_token_id": [1, 2], "kinds": ["a", "b"]},
        {"transformer.h.": (2, [1, 1, 1])},
        {"n_layer": 3, "architectures": ["A", "B"], "eos_token_id": [1, 2], "kinds": ["b", "b", "b"]},
    ),
    "all layers in their places": ({"x": 1}, {"model.layers.": (2, [0, 1])}, {"x": 1}),
}
DOUBTFUL: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one count for encoder and decoder": (
        {"num_layers": 2},
        {"encoder.block.": (2, None), "decoder.block.": (2, [0])},
        "counts the layers of 'decoder.block.' and 'encoder.block.' as one",
    ),
    "no count": ({"x": 1}, {"model.layers.": (2, [0])}, "does not say that there are 2 layers"),
    "another count": ({"n_layer": 3}, {"transformer.h.": (2, [0])}, "does not say that there are 2 layers"),
    "a section without one": (
        {"text_config": {"x": 1}, "vision_config": {"num_hidden_layers": 2}},
        {"language_model.layers.": (2, [0]), "vision_tower.layers.": (2, None)},
        "does not say that there are 2 layers in 'language_model.layers.'",
    ),
}


def restacked(config: dict[str, Any], stacks: dict[str, Any]) -> dict[str, Any]:
    counts = {prefix: count for prefix, (count, _) in stacks.items()}
    changed = [
        Stack(p, tuple((0, i) for i in layers)) for p, (_, layers) in stacks.items() if layers is not None
    ]
    return stacked_config([config], 0, counts, changed)


@pytest.mark.parametrize("case", CONFIGS)
def test_each_part_of_a_config_follows_its_own_layers(case: str) -> None:
    config, stacks, wanted = CONFIGS[case]
    given = copy.deepcopy(config)
    assert restacked(config, stacks) == wanted
    assert config == given


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_config_that_leaves_a_doubt_is_not_written(case: str) -> None:
    config, stacks, words = DOUBTFUL[case]
    with pytest.raises(PlanError, match=re.escape(words)):
        restacked(config, stacks)


def test_lists_take_each_layer_s_entry_from_its_own_model() -> None:
    kinds = [{"n_layer": 2, "kinds": ["a", "b"]}, {"n_layer": 3, "kinds": ["c", "d", "e"]}, {"n_layer": 2}]
    stack = Stack("transformer.h.", ((0, 0), (1, 2), (2, 1)))
    assert stacked_config(kinds, 0, {"transformer.h.": 2}, [stack])["kinds"] == ["a", "e", "b"]


def test_slicing_the_text_of_a_model_that_sees(tmp_path: Path) -> None:
    text, sight = "language_model.model.layers.{}.w.weight", "vision_tower.encoder.layers.{}.w.weight"
    names = [*map(text.format, range(3)), *map(sight.format, range(2)), "language_model.lm_head.weight"]
    config = {**CONFIG, **copy.deepcopy(CONFIGS["text and vision"][0])}
    state = {name: torch.ones(2, 2) for name in names}
    model = write(tmp_path / "a", state, config)
    runs = [{"sources": [source(model, 0, 3)]}, {"sources": [source(model, 1, 3)]}]
    modules = {"text_decoder": {"slices": runs}, "vision_tower": {"models": [{"model": model}]}}
    recipe = {"merge_method": "passthrough", "modules": modules}
    out = made(recipe, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    wanted = CONFIGS["text and vision"][2]
    assert {key: written[key] for key in wanted} == wanted
    assert {*map(text.format, range(5)), *map(sight.format, range(2))} < {*out}

    del config["text_config"]["num_hidden_layers"]
    write(tmp_path / "a", state, config)
    with pytest.raises(
        PlanError, match="does not say that there are 3 layers in 'language_model.model.layers.'"
    ):
        prepare(parse_recipe(recipe))


# What a recipe says without effect


IGNORED: dict[str, tuple[str, dict[str, Any], str]] = {
    "task_arithmetic": ("task_arithmetic", {"int8_mask": True, "rescale": True, "density": 0.5}, "density"),
    "ties": ("ties", {"int8_mask": True}, "int8_mask"),
    "della_linear": ("della_linear", {"int8_mask": False, "density": 0.5}, "int8_mask"),
    "sce": ("sce", {"int8_mask": True}, "int8_mask"),
    **{f"int8_mask in {kind.name}": (kind.name, {"int8_mask": True}, "int8_mask") for kind in STRATEGIES},
    "normalize": ("model_stock", {"normalize": True, "weight": 0.5}, "weight"),
    "lambda": ("nearswap", {"lambda": [0.1, 1], "density": {"filter": "mlp", "value": 0.1}}, "lambda"),
}
OWN = {
    "ties": ("ties", {"normalize": False}),
    "dare_ties": ("dare_ties", {"lambda": 0.3, "rescale": True}),
    "linear": ("linear", {"normalize": False}),
    "nuslerp": ("nuslerp", {"nuslerp_flatten": False}),
    "slerp": ("slerp", {"t": 0.9}),
}


def three(tmp_path: Path) -> list[str]:
    return [write(tmp_path / str(v), filled(v, 2), config_of(2)) for v in (0.0, 1.0, 2.0)]


@pytest.mark.parametrize("case", IGNORED)
def test_what_mergekit_accepts_and_ignores_is_accepted_and_told(case: str, tmp_path: Path) -> None:
    method, parameters, key = IGNORED[case]
    base, *others = three(tmp_path)
    kind = find_strategy(method)
    count = (kind.parents[1] or 2) - (kind.base_model is BaseModel.PARENT)
    recipe: dict[str, Any] = {"merge_method": method, "base_model": base, "models": others[:count]}
    plan = prepare(parse_recipe({**recipe, "parameters": parameters})).plan
    there = ", as in mergekit" if method in METHODS else ""
    assert f"ignored: {key} changes nothing in {method}{there}" in plan.remarks
    kept = {name: value for name, value in parameters.items() if name in parameters_of(kind)}
    without = prepare(parse_recipe({**recipe, "parameters": kept})).plan
    assert [t.strategy for t in plan.tasks] == [t.strategy for t in without.tasks]
    assert not any("ignored" in remark for remark in without.remarks)


@pytest.mark.parametrize("case", OWN)
def test_what_is_one_for_all_changes_nothing_under_a_single_model(case: str, tmp_path: Path) -> None:
    """As in mergekit, whatever the models say; the plan tells, and where it would be used."""
    method, own = OWN[case]
    base, *others = three(tmp_path)
    shared = {"t": 0.2} if "t" in own else {}
    others = others[:1] if shared else others
    recipe = {"merge_method": method, "base_model": base, "parameters": shared}
    entries = [{"model": model, "parameters": own if n == 0 else {}} for n, model in enumerate(others)]
    plan = prepare(parse_recipe({**recipe, "models": entries})).plan
    for key in own:
        (told,) = [remark for remark in plan.remarks if f"ignored: {key} of a single model" in remark]
        assert "under the recipe's 'parameters'" in told
    without = prepare(parse_recipe({**recipe, "models": others})).plan
    assert [t.strategy for t in plan.tasks] == [t.strategy for t in without.tasks]
    assert not any("ignored" in remark for remark in without.remarks)


def test_residual_weight_is_told_to_change_nothing(tmp_path: Path) -> None:
    part = {"sources": [source(three(tmp_path)[0], 0, 2)], "residual_weight": 0.5}
    plan = prepare(parse_recipe({"merge_method": "passthrough", "slices": [part]})).plan
    assert plan.remarks == ("ignored: residual_weight changes nothing, as in mergekit",)


@pytest.mark.parametrize("level", ["recipe", "model"])
def test_filters_that_match_nothing_are_told(level: str, tmp_path: Path) -> None:
    filters = [
        {"filter": "nosuch", "value": 0},
        {"filter": "layers:7-9", "value": 0},
        {"filter": "mlp", "value": 1},
    ]
    weight = {"parameters": {"weight": [*filters, {"value": 2}]}}
    entries = [{"model": m, **(weight if level == "model" else {})} for m in three(tmp_path)]
    recipe = {"merge_method": "linear", "models": entries, **(weight if level == "recipe" else {})}
    assert prepare(parse_recipe(recipe)).plan.remarks == tuple(
        f"the filter '{pattern}' of parameter 'weight' matches no tensor"
        for pattern in ("nosuch", "layers:7-9")
    )


@pytest.mark.parametrize("only", [["nosuch"], ["mlp", "layers.7."], ["*.attn.*"]])
def test_what_only_names_must_be_there(only: list[str], tmp_path: Path) -> None:
    recipe = {"merge_method": "linear", "models": three(tmp_path), "only": only}
    with pytest.raises(RecipeError, match=re.escape(f"only: '{only[-1]}' matches no tensor")):
        prepare(parse_recipe(recipe))


@pytest.mark.parametrize("where", ["only", "filter"])
def test_patterns_longer_than_any_name_are_refused(where: str, tmp_path: Path) -> None:
    pattern = "*a" * 600
    told = {"only": [pattern]} if where == "only" else {}
    weight = {} if where == "only" else {"parameters": {"weight": [{"filter": pattern, "value": 2}]}}
    recipe = {"merge_method": "linear", "models": three(tmp_path), **told, **weight}
    with pytest.raises(RecipeError, match="1200 characters"):
        prepare(parse_recipe(recipe))


def test_a_plan_counts_what_only_leaves_out_as_copied(tmp_path: Path) -> None:
    models = three(tmp_path)
    (tmp_path / "r.yml").write_text(json.dumps({"merge_method": "linear", "models": models, "only": ["mlp"]}))
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "r.yml")]).output
    assert "merged 2 tensors;" in told and f"copied 3 tensors of {models[0]}" in told
    document = json.loads(CliRunner().invoke(main, ["plan", str(tmp_path / "r.yml"), "--json"]).output)
    assert {t["name"] for t in document["tensors"] if t["action"] == "copy"} == {EMBED, NORM, HEAD}


# What a config says of single layers by their numbers (configurations of transformers)

LAYERS = (0, 1, 2, 3, 2, 3, 1)
"""A model of four layers, three of which stand twice."""
BY_NUMBER: dict[str, tuple[str, Any, Any]] = {
    "attn_layer_indices": ("bamba", [1, 3], [1, 3, 5, 6]),
    "cross_attention_layers": ("mllama_text_model", [1], [1, 6]),
    "full_attn_idxs": ("lfm2", [2], [2, 4]),
    "fullatt_block_indexes": ("qwen2_5_vl_vision", [3], [3, 5]),
    "global_attn_indexes": ("sam_vision_model", [0, 1], [0, 1, 6]),
    "local_layer_ids": ("inkling_text", [0, 1], [0, 1, 6]),
    "look_ahead_layers": ("qwen2_5_omni_dit", [2], [2, 4]),
    "look_backward_layers": ("qwen2_5_omni_dit", [0], [0]),
    "mlp_only_layers": ("qwen3_moe", [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]),
    "moe_layers": ("llama4_text", [1, 3], [1, 3, 5, 6]),
    "residual_block_indices": ("vitdet", [0, 1], [0, 1, 6]),
    "window_block_indices": ("vitdet", [2], [2, 4]),
    "rope_scaling_layers": ("molmo2_text", [], []),
    "cat_hidden_layers": ("granite_speech_plus_encoder", [1, 0], [6, 0]),
    "deepstack_visual_indexes": ("qwen3_vl_vision", [1, 3], [6, 5]),
    "intermediate_hidden_state_indices": ("seggpt", [2, 3], [4, 5]),
    "intermediate_layers_indices": ("mllama_vision_model", [0, 2], [0, 4]),
    "subsample_layers": ("granite_speech5_encoder", [0, 3], [0, 5]),
    "kv_source_layers": ("mistral_large4_text", [0, 0, 2, 2], [0, 0, 2, 2, 4, 4, 0]),
    "attention_types": (
        "gpt_neo",
        [[["global", "local"], 2]],
        [[["global", "local", "global", "local", "global", "local", "local"], 1]],
    ),
}


def counted(name: str) -> str:
    """The key under which a configuration counts its layers."""
    return {"gpt_neo": "num_layers", "qwen2_5_vl_vision": "depth", "qwen3_vl_vision": "depth"}.get(
        name, "num_layers" if name.startswith("granite") else "num_hidden_layers"
    )


@pytest.mark.parametrize("key", BY_NUMBER)
def test_numbers_of_layers_follow_their_layers(key: str, tmp_path: Path) -> None:
    """Those of transformers' own configurations, which take the result as it is."""
    from transformers import AutoConfig

    kind, value, wanted = BY_NUMBER[key]
    count = counted(kind)
    own: dict[str, Any] = {count: 4, key: value, **({"merge_index": 1} if kind == "seggpt" else {})}
    first = AutoConfig.for_model(kind, **own)
    config = json.loads(first.to_json_string(use_diff=False))
    assert config[key] == value
    found = restacked(config, {"model.layers.": (4, LAYERS)})
    assert (found[key], found[count]) == (wanted, 7)
    (tmp_path / "config.json").write_text(json.dumps(found))
    again = AutoConfig.from_pretrained(tmp_path)
    assert getattr(again, key) == wanted
    for kinds in ("layer_types", "attention_layers"):
        before = getattr(first, kinds, None)
        assert getattr(again, kinds, None) == (before and [before[layer] for layer in LAYERS])


def test_every_name_is_tried() -> None:
    older = {"hybrid_layer_ids", "hybrid_override_pattern"}  # saved by earlier versions of zamba2, nemotron_h
    assert set(BY_NUMBER) | older == layer_indices.NAMES
    found = restacked(
        {"num_hidden_layers": 4, "hybrid_layer_ids": [1], "hybrid_override_pattern": "M-*E"},
        {"model.layers.": (4, LAYERS)},
    )
    assert (found["hybrid_layer_ids"], found["hybrid_override_pattern"]) == ([1, 6], "M-*E*E-")


def test_numbers_come_from_each_layer_s_own_model() -> None:
    kinds = [{"n_layer": 3, "moe_layers": [2]}, {"n_layer": 2, "moe_layers": [0]}, {"n_layer": 3}]
    stack = Stack("transformer.h.", ((0, 2), (1, 0), (1, 1), (2, 2), (0, 0)))
    assert stacked_config(kinds, 0, {"transformer.h.": 3}, [stack])["moe_layers"] == [0, 1, 3]


ODD: list[tuple[str, Any]] = [
    ("moe_layers", None),
    ("moe_layers", [True, "1"]),
    ("moe_layers", [-1]),
    ("mlp_only_layers", "0"),
    ("deepstack_visual_indexes", [8, 16]),
    ("kv_source_layers", [0]),
    ("hybrid_override_pattern", "M"),
    ("attention_types", [[["a"], 10**12]]),
    ("attention_types", [["a", 2]]),
    ("attention_types", [[["a"], 3]]),
]


@pytest.mark.parametrize(("key", "value"), ODD)
def test_what_has_another_form_is_left_alone(key: str, value: Any) -> None:
    assert restacked({"n_layer": 2, key: value}, {"transformer.h.": (2, [1, 1, 0])})[key] == value


@pytest.mark.parametrize(
    ("key", "value", "layers", "words"),
    [
        ("deepstack_visual_indexes", [1, 2], [0, 1], "names layer 2 in 'deepstack_visual_indexes'"),
        ("kv_source_layers", [0, 0, 2], [1, 2], "layer 1 uses the keys and values of layer 0"),
        ("kv_source_layers", [0, 0, 2], [1, 0], "layer 1 uses the keys and values of layer 0"),
    ],
)
def test_layers_that_cannot_do_without_another(key: str, value: Any, layers: list[int], words: str) -> None:
    with pytest.raises(PlanError, match=re.escape(words)):
        restacked({"n_layer": 3, key: value}, {"transformer.h.": (3, layers)})


@pytest.mark.parametrize("ranges", [(3, 1), (1, 1)])
def test_runs_without_layers_are_refused(ranges: tuple[int, int], tmp_path: Path) -> None:
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(three(tmp_path)[0], *ranges)]}]}
    with pytest.raises(RecipeError, match=re.escape(f"layer_range {list(ranges)} of ") + ".*has no layers"):
        prepare(parse_recipe(recipe))


# A base that stands alone


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "sce", "ram"])
@pytest.mark.parametrize("adapter", [False, True])
def test_the_base_alone_is_written_as_it_is(method: str, adapter: bool, tmp_path: Path) -> None:
    """As in mergekit; so adapters are merged into their models."""
    base, _, other = three(tmp_path)
    out: list[dict[str, Tensor]] = []
    if adapter:
        base += f"+{write_adapter(tmp_path / 'lora')}"
    parameters = {} if method in ("sce", "ram") else {"weight": 0.5}
    recipes: list[dict[str, Any]] = [
        {"models": [{"model": base, "parameters": parameters}]},
        {"slices": [{"sources": [source(base, 0, 2)]}]},
        {
            "slices": [
                {"sources": [source(base, 0, 1)]},
                {"sources": [source(base, 0, 1), source(other, 0, 1)]},
            ]
        },
    ]
    for number, parts in enumerate(recipes):
        recipe = {"merge_method": method, "base_model": base, "dtype": "float32", **parts}
        out.append(made(recipe, tmp_path / f"out{number}"))
    wanted = made({"merge_method": "passthrough", "models": [base], "dtype": "float32"}, tmp_path / "wanted")
    assert bool((wanted[LAYER.format(0)] == (6 if adapter else 0)).all())
    for name, value in wanted.items():
        assert torch.equal(out[0][name], value) and torch.equal(out[1][name], value), name
    assert torch.equal(out[2][LAYER.format(0)], wanted[LAYER.format(0)])
    assert bool((out[2][LAYER.format(1)] != wanted[LAYER.format(0)]).any())
    prepared = prepare(parse_recipe({"merge_method": method, "base_model": base, **recipes[0]}))
    assert {tensor.note for tensor in prepared.plan.tasks} == {"the only model that is listed"}


@pytest.mark.parametrize("method", ["model_stock", "arcee_fusion", "nearswap", "multislerp"])
def test_methods_that_need_more_than_the_base_say_so(method: str, tmp_path: Path) -> None:
    base = three(tmp_path)[0]
    for parts in ({"models": [base]}, {"slices": [{"sources": [source(base, 0, 2)]}]}):
        recipe = {"merge_method": method, "base_model": base, **parts}
        with pytest.raises(RecipeError, match=f"(?=.*besides the base)(?=.*{method})"):
            prepare(parse_recipe(recipe))


def write_adapter(place: Path) -> Path:
    """One that adds 6 to the first layer."""
    place.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up_proj"]}
    (place / "adapter_config.json").write_text(json.dumps(settings))
    name = f"base_model.model.{LAYER.format(0).removesuffix('.weight')}"
    factors = {
        f"{name}.lora_A.weight": torch.full((1, 8), 2.0),
        f"{name}.lora_B.weight": torch.full((8, 1), 3.0),
    }
    save_file(factors, place / "adapter_model.safetensors")
    return place
