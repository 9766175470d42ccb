"""LoRA inputs: against PEFT's own merge, by any block, and what is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_models.merge import CheckpointError, MergeError, MergeResult, merge
from merge_models.merge.checkpoint.sources.lora import open_model, split_adapter
from merge_models.merge.strategies import Linear, TaskArithmetic
from tests.helpers import assert_same_bits, read_folder, tensors, write_folder

RANK = 3


def _llama(**settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, attention_bias=True, **settings)  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16))


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (_llama, {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": (_llama, {"target_modules": ["q_proj", "up_proj"], "use_rslora": True}),
    "patterns": (
        _llama,
        {
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"up_proj": 5, r"layers\.0\.self_attn\.q_proj": 2},
            "alpha_pattern": {r".*\.1\..*v_proj": 7},
        },
    ),
    "embedding": (_llama, {"target_modules": ["embed_tokens", "k_proj"]}),
    "saved modules": (_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "biases": (_llama, {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}),
    "lora bias": (_llama, {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "dora": (_llama, {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "conv1d": (_gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d untold": (_gpt2, {"target_modules": ["c_attn", "c_proj"]}),
}


def _train(model: Any, settings: dict[str, Any], place: Path, seed: int = 0) -> dict[str, Tensor]:
    """Saves a base and an adapter with random factors; returns PEFT's merge, by name."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(str(place / "base"))
        wrapped = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=5, **settings)).to(model.dtype)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
            if "magnitude" in name:
                parameter.data.abs_()
        wrapped.save_pretrained(str(place / "adapter"))
        merged: Any = wrapped.merge_and_unload()
    return merged.state_dict()


def _merged(model: str, place: Path, **options: Any) -> dict[str, Tensor]:
    assert isinstance(merge([model], Linear(), out=place / "out", **options), MergeResult)
    return read_folder(place / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_sums_are_pefts(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    make, settings = CASES[case]
    expected = _train(make().to(dtype), settings, tmp_path)
    base = read_folder(tmp_path / "base")
    merged = _merged(f"{tmp_path}/base+{tmp_path}/adapter", tmp_path)
    assert set(merged) == set(base)
    changed = [name for name in base if not torch.equal(base[name], expected[name].to(dtype))]
    assert changed
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    for name, tensor in merged.items():
        assert tensor.dtype == dtype
        if name in changed:
            torch.testing.assert_close(tensor, expected[name].to(dtype), rtol=tolerance, atol=tolerance)
        else:
            assert_same_bits(tensor, base[name], name)


TIED: dict[str, dict[str, Any]] = {
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("together", [False, True], ids=["apart", "ensure_weight_tying"])
@pytest.mark.parametrize("stored", ["auto", False], ids=["stored", "lean"])
@pytest.mark.parametrize("case", TIED)
def test_a_tied_head_is_what_was_trained(tmp_path: Path, case: str, stored: Any, together: bool) -> None:
    """Against PEFT's model as it was trained: its merge_and_unload changes both tables, or one twice."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = _llama(tie_word_embeddings=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.arange(40)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(tmp_path / "base"))
        config = LoraConfig(r=RANK, lora_alpha=5, ensure_weight_tying=together, **TIED[case])
        trained = get_peft_model(model, config).eval()
        for parameter in trained.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        trained.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=stored)
        expected = trained(tokens).logits
        merge([f"{tmp_path}/base+{tmp_path}/adapter"], Linear(), out=tmp_path / "out")
        made = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
        torch.testing.assert_close(made(tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert made.config.tie_word_embeddings is together


def test_an_embedding_that_was_only_resized_stays_tied(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 11, "tie_word_embeddings": True}
    state = {k: v for k, v in tensors(0).items() if k != "lm_head.weight"}
    base = write_folder(tmp_path / "base", state, config=config)
    table = {"base_model.model.model.embed_tokens.weight": torch.full((13, 8), 2.0)}
    adapter = _adapter(tmp_path / "held", {**GOOD, **table})
    assert set(_merged(f"{base}+{adapter}", tmp_path)) == set(state)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["vocab_size"], written["tie_word_embeddings"]) == (13, True)
    adapter = _adapter(tmp_path / "trained", {**GOOD, **table}, modules_to_save=["embed_tokens"])
    with pytest.raises(CheckpointError, match="does not hold the head that was tied to it; save it again"):
        open_model(f"{base}+{adapter}")


@pytest.mark.parametrize("together", [False, True])
def test_a_tied_head_that_is_called_otherwise_is_not_guessed(tmp_path: Path, together: bool) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": True}
    base = write_folder(tmp_path / "base", {"shared.weight": torch.ones(11, 8)}, config=config)
    table = {"base_model.model.shared.weight": torch.full((11, 8), 2.0)}
    settings = {"modules_to_save": ["shared"], "ensure_weight_tying": together}
    pair = f"{base}+{_adapter(tmp_path / 'adapter', table, **settings)}"
    if together:
        assert set(open_model(pair).tensors) == {"shared.weight"}
    else:
        with pytest.raises(
            CheckpointError, match="not the head that is tied to it; merge it with PEFT first"
        ):
            open_model(pair)


def test_an_adapted_bf16_model_is_written_as_bf16_rounded_once(tmp_path: Path) -> None:
    _train(_llama().to(torch.bfloat16), CASES["plain"][1], tmp_path)
    pair = f"{tmp_path}/base+{tmp_path}/adapter"
    narrow = _merged(pair, tmp_path / "narrow")
    wide = _merged(pair, tmp_path / "wide", dtype="float32")
    for name, tensor in narrow.items():
        assert_same_bits(tensor, wide[name].to(torch.bfloat16), name)
    adapted = "model.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(wide[adapted], wide[adapted].to(torch.bfloat16).float())


def test_task_vector_of_an_adapter_is_its_product(tmp_path: Path) -> None:
    _train(_llama(), CASES["plain"][1], tmp_path)
    base, pair = f"{tmp_path}/base", f"{tmp_path}/base+{tmp_path}/adapter"
    merge([pair], TaskArithmetic(weight=0.5), base=base, out=tmp_path / "half")
    whole, half, start = (
        _merged(pair, tmp_path),
        read_folder(tmp_path / "half"),
        read_folder(tmp_path / "base"),
    )
    for name in whole:
        torch.testing.assert_close(half[name] - start[name], (whole[name] - start[name]) / 2)


@pytest.mark.parametrize("case", ["plain", "embedding", "dora", "lora bias", "conv1d"])
def test_any_block_reads_the_same(tmp_path: Path, case: str) -> None:
    make, settings = CASES[case]
    _train(make(), settings, tmp_path)
    model = open_model(f"{tmp_path}/base+{tmp_path}/adapter")
    generator = np.random.default_rng(0)
    for info in model.tensors.values():
        whole = model.read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8)).view(np.float32)
        for _ in range(8):
            first, last = sorted(generator.integers(0, info.count + 1, 2).tolist())
            buffer = np.empty((last - first) * 4, np.uint8)
            part = model.read(info, first * 4, last * 4, buffer).view(np.float32)
            np.testing.assert_allclose(part, whole[first:last], rtol=1e-5, atol=1e-6)
    model.close()


def _adapter(place: Path, state: dict[str, Tensor], **settings: Any) -> str:
    """An adapter written by hand."""
    place.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **settings}
    (place / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, place / "adapter_model.safetensors")
    return str(place)


UP = "base_model.model.model.layers.0.mlp.up_proj"
GOOD = {f"{UP}.lora_A.weight": torch.ones(2, 8), f"{UP}.lora_B.weight": torch.ones(12, 2)}


@pytest.mark.parametrize(
    ("state", "settings", "words"),
    [
        ({**GOOD, "base_model.model.model.extra.weight": torch.ones(3)}, {}, "extra.weight' fits no tensor"),
        ({k.replace("up", "out"): v for k, v in GOOD.items()}, {}, "out_proj.lora_A.weight' fits no tensor"),
        ({**GOOD, f"{UP}.lora_A.weight": torch.ones(2, 9)}, {}, r"makes \[12, 9\]"),
        ({**GOOD, f"{UP}.lora_A.weight": torch.ones(3, 8)}, {}, "says rank 2"),
        ({f"{UP}.lora_A.weight": torch.ones(2, 8)}, {}, "has no counterpart"),
        ({**GOOD, "base_model.model.lm_head.weight": torch.ones(11, 9)}, {}, r"is \[11, 9\], not \[11, 8\]"),
        (GOOD, {"peft_type": "LOHA"}, "is a LOHA adapter"),
        (GOOD, {"init_lora_weights": "pissa_niter_4"}, "trained on a changed base"),
        (GOOD, {"target_parameters": ["experts"]}, "adapts bare parameters"),
        (GOOD, {"r": "two"}, "missing or malformed"),
        (GOOD, {"rank_pattern": {"(": 4}}, "missing or malformed"),
        (
            {**GOOD, f"{UP}.lora_magnitude_vector": torch.ones(3)},
            {"use_dora": True},
            "DoRA of 'model.layers.0.mlp.up_proj.weight' is not supported",
        ),
    ],
)
def test_misfits_are_told_before_any_work(
    tmp_path: Path, state: dict[str, Tensor], settings: dict[str, Any], words: str
) -> None:
    base = write_folder(tmp_path / "base", tensors(0))
    adapter = _adapter(tmp_path / "adapter", state, **settings)
    with pytest.raises(CheckpointError, match=words) as raised:
        merge([f"{base}+{adapter}"], Linear(), out=tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_missing_and_pickled_adapters_are_refused(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", tensors(0))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_model(f"{base}+{tmp_path}/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        open_model(f"{base}+{tmp_path}/empty")
    adapter = Path(_adapter(tmp_path / "adapter", GOOD))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        open_model(f"{base}+{adapter}")


@pytest.mark.parametrize("named", [True, False], ids=["base named", "base unknown"])
@pytest.mark.parametrize("kind", ["folder", "file", "renamed file", "no config", "pickle", "pickle file"])
def test_an_adapter_is_no_model(tmp_path: Path, kind: str, named: bool) -> None:
    """Means of factors are no means of what they add."""
    known = {"base_model_name_or_path": "org/base"} if named else {}
    places = [Path(_adapter(tmp_path / name, GOOD, **known)) for name in ("a", "b")]
    given, allow = [str(place) for place in places], "pickle" in kind
    for number, place in enumerate(places):
        file = place / "adapter_model.safetensors"
        if allow:
            torch.save(GOOD, file.with_suffix(".bin"))
            torch.save({}, place / "optimizer.pt")
            file.unlink()
            file = file.with_suffix(".bin")
        if kind == "renamed file":
            file = file.rename(place / "factors.safetensors")
        if kind == "no config":
            (place / "adapter_config.json").unlink()
        given[number] = str(file) if "file" in kind else str(place)
    for pickles in {False, allow}:
        with pytest.raises(CheckpointError, match="is an adapter without its base model; write") as raised:
            merge(given, Linear(), out=tmp_path / "out", allow_pickle=pickles)
        base = "org/base" if named and kind != "no config" else "BASE"
        assert f"write {base}+{places[0]}" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_model_beside_an_adapter_is_read(tmp_path: Path) -> None:
    place = Path(_adapter(tmp_path / "both", GOOD))
    save_file(tensors(0), place / "weights.safetensors")
    assert set(open_model(str(place)).tensors) == set(tensors(0))


def test_adapters_in_memory_are_refused() -> None:
    unmerged = {f"{UP}.base_layer.weight": torch.ones(12, 8), **GOOD}
    for state, words in ((GOOD, "without its base model"), (unmerged, "that is not merged")):
        with pytest.raises(MergeError, match=rf"{words}.*merge_and_unload\(\)"):
            merge([state, state], Linear())
    own = {"layers.0.q_proj.lora_A.speech.weight": torch.ones(2, 8), "embed.weight": torch.ones(3, 8)}
    assert set(merge([own, own], Linear())) == set(own)  # an architecture with factors of its own


def test_a_resized_vocabulary_and_an_untied_head_reach_the_config(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 11, "tie_word_embeddings": True}
    state = {k: v for k, v in tensors(0).items() if k != "lm_head.weight"}
    base = write_folder(tmp_path / "base", state, config=config)
    saved = {
        "base_model.model.model.embed_tokens.weight": torch.ones(13, 8),
        "base_model.model.lm_head.weight": torch.zeros(13, 8),
    }
    merged = _merged(f"{base}+{_adapter(tmp_path / 'adapter', saved)}", tmp_path)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["vocab_size"], written["tie_word_embeddings"]) == (13, False)
    assert_same_bits(merged["lm_head.weight"], torch.zeros(13, 8))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/base+org/lora", ("org/base", "org/lora")),
        ("org/base@main+org/lora@v1", ("org/base@main", "org/lora@v1")),
        ("{0}/a+b", ("{0}/a+b", None)),
        ("{0}/a+b+{0}/lora", ("{0}/a+b", "{0}/lora")),
        ("first+{0}/lora", ("first", "{0}/lora")),
        ("plain", ("plain", None)),
    ],
)
def test_where_a_name_is_split(tmp_path: Path, name: str, expected: tuple[str, str | None]) -> None:
    (tmp_path / "a+b").mkdir()
    base, adapter = expected
    wanted = (base.format(tmp_path), adapter and adapter.format(tmp_path))
    assert split_adapter(name.format(tmp_path), {"first": tmp_path}) == wanted


def test_a_recipe_names_adapters(tmp_path: Path) -> None:
    expected = _train(_llama(), CASES["plain"][1], tmp_path)
    from merge_models.merge import run_recipe

    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: linear\nmodels:\n- model: {tmp_path}/base+{tmp_path}/adapter\n"
        f"  parameters: {{weight: 1}}\n- model: {tmp_path}/base\n  parameters: {{weight: 1}}\n"
    )
    run_recipe(recipe, tmp_path / "out")
    base, merged = load_file(tmp_path / "base/model.safetensors"), read_folder(tmp_path / "out")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (base[name] + expected[name]) / 2)


@pytest.mark.parametrize("magnitude", [False, True])
def test_bytes_do_not_depend_on_threads(tmp_path: Path, magnitude: bool) -> None:
    """Blocks begin and end inside rows here: 1000 columns do not divide a block."""
    generator = torch.Generator().manual_seed(0)
    state = {"proj.weight": torch.randn(700, 1000, generator=generator).bfloat16()}
    base = write_folder(tmp_path / "base", state)
    factors: dict[str, tuple[int, ...]] = {"lora_A.weight": (2, 1000), "lora_B.weight": (700, 2)}
    if magnitude:
        factors["lora_magnitude_vector"] = (700,)
    adapter = {f"base_model.model.proj.{k}": torch.randn(s, generator=generator) for k, s in factors.items()}
    pair = f"{base}+{_adapter(tmp_path / 'adapter', adapter)}"
    outputs = [_merged(pair, tmp_path / str(threads), threads=threads) for threads in (1, 3)]
    assert_same_bits(outputs[0]["proj.weight"], outputs[1]["proj.weight"])
    wide = state["proj.weight"].double()
    wide += adapter["base_model.model.proj.lora_B.weight"] @ adapter["base_model.model.proj.lora_A.weight"]
    if magnitude:
        norms = adapter["base_model.model.proj.lora_magnitude_vector"].double()
        wide *= (norms / wide.norm(dim=1))[:, None]
    torch.testing.assert_close(outputs[0]["proj.weight"].double(), wide, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_the_tokenizer_is_the_adapters_where_it_has_one(tmp_path: Path, own: bool) -> None:
    files = {"tokenizer.json": "base", "tokenizer_config.json": "{}", "merges.txt": "base", "LICENSE": "base"}
    base = write_folder(tmp_path / "base", tensors(0), files=files)
    adapter = Path(_adapter(tmp_path / "adapter", GOOD))
    if own:
        (adapter / "tokenizer.json").write_text("adapter")
        (adapter / "tokenizer_config.json").write_text("{}")
    _merged(f"{base}+{adapter}", tmp_path)
    assert (tmp_path / "out/tokenizer.json").read_text() == ("adapter" if own else "base")
    assert (tmp_path / "out/merges.txt").exists() is not own
    assert (tmp_path / "out/LICENSE").read_text() == "base"
    assert not (tmp_path / "out/adapter_config.json").exists()
