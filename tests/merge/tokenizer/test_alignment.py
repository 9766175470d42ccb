"""Merged tokenizers: rows one by one, what the tokenizer encodes, what the config says, chat templates."""

from __future__ import annotations

import json
import resource
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from merge_models.merge import CheckpointError, PlanError, RecipeError, run_recipe
from merge_models.merge.checkpoint.sources.lora import open_model
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.tokenizer.alignment import align
from merge_models.merge.tokenizer.build import save_tokenizer
from merge_models.merge.tokenizer.chat import BUILT_IN
from merge_models.merge.tokenizer.settings import TokenizerSettings
from tests.helpers import assert_same_bits, read_folder, tensors, write_folder

TEXT = "the quick brown fox jumps over the lazy dog and then the other dogs jump over it too"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WIDTH = 8


def _tokenizer(added: Sequence[str] = (), size: int = 290, text: str = TEXT) -> Any:
    """A byte-level BPE tokenizer trained on a text, with added tokens; those in <| |> are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokens: list[Any] = [AddedToken(token, normalized=False, special="<|" in token) for token in added]
    for token in tokens:
        tokenizer.add_tokens([token], special_tokens=token.special)
    return tokenizer


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 1,
    "dtype": "float32",
}  # fmt: skip
BODY = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    "mlp.gate_proj": (16, WIDTH),
    "mlp.up_proj": (16, WIDTH),
    "mlp.down_proj": (WIDTH, 16),
    "input_layernorm": (WIDTH,),
    "post_attention_layernorm": (WIDTH,),
}


def _model(
    place: Path, tokenizer: Any, seed: int, rows: int | None = None, dtype: torch.dtype = torch.float32
) -> str:
    """A loadable Llama of one layer with a tokenizer; every row of its tables tells the model and the row."""
    count = rows or len(tokenizer)
    marks = torch.arange(count)[:, None] + 1000 * seed + torch.zeros(WIDTH)
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in BODY.items()}
    state = {EMBED: marks.to(dtype), **tensors(0, dtype, shapes), "model.norm.weight": torch.ones(WIDTH)}
    generation = json.dumps({"bos_token_id": 0, "eos_token_id": [1, count - 1]})
    write_folder(
        place,
        {**state, HEAD: (-marks).to(dtype)},
        config={**CONFIG, "vocab_size": count},
        files={"generation_config.json": generation},
    )
    tokenizer.save_pretrained(place)
    return str(place)


def _run(place: Path, recipe: dict[str, Any]) -> tuple[dict[str, Tensor], Any, dict[str, Any]]:
    from transformers import AutoTokenizer

    run_recipe(parse_recipe(recipe), place / "out")
    tokenizer = AutoTokenizer.from_pretrained(place / "out")
    return read_folder(place / "out"), tokenizer, json.loads((place / "out/config.json").read_text())


def _linear(models: Sequence[str], **more: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": entries, **more}


def _marks(table: Tensor) -> list[float]:
    """The value that each row holds in all its columns."""
    assert bool((table == table[:, :1]).all())
    return table[:, 0].double().tolist()


def test_union_rows_are_as_documented(tmp_path: Path) -> None:
    """Token by token: own rows averaged; missing ones from the only owner, the base, or the mean."""
    added = {"base": ["<|x|>", "both"], "b": ["<|y|>", "<|x|>", "three"], "c": ["both", "three", "<|x|>"]}
    tokenizers = {name: _tokenizer(tokens) for name, tokens in added.items()}
    models = {n: _model(tmp_path / n, tokenizer, i) for i, (n, tokenizer) in enumerate(tokenizers.items())}
    recipe = _linear(list(models.values()), base_model=models["base"], tokenizer={"source": "union"})
    merged, tokenizer, config = _run(tmp_path, recipe)
    ids = {name: t.get_vocab() for name, t in tokenizers.items()}
    names = list(ids)
    out = tokenizer.get_vocab()
    assert sorted(out.values()) == list(range(294))
    assert config["vocab_size"] == merged[EMBED].shape[0] == merged[HEAD].shape[0] == 294
    assert {out[token] for token in ids["base"]} == set(range(292))
    for token, row in out.items():
        owners = [n for n in names if token in ids[n]]
        rows = {n: ids[n][token] + 1000 * names.index(n) for n in owners}
        if len(owners) == 1:
            fill = rows[owners[0]]
        elif "base" in rows:
            fill = rows["base"]
        else:
            fill = sum(rows.values()) / len(rows)
        expected = sum(rows.get(n, fill) for n in names) / 3
        assert _marks(merged[EMBED])[row] == pytest.approx(expected, rel=1e-6), token
        assert _marks(merged[HEAD])[row] == pytest.approx(-expected, rel=1e-6), token


def test_the_union_encodes_and_decodes_as_its_sources(tmp_path: Path) -> None:
    left, right = _tokenizer(["<|x|>", "tool"]), _tokenizer(["<|y|>", "chain"])
    models = [_model(tmp_path / "a", left, 0), _model(tmp_path / "b", right, 1)]
    _, merged, _ = _run(tmp_path, _linear(models, tokenizer_source="union"))
    for source, texts in (
        (left, ["<|x|>the tool", "a toolbox"]),
        (right, ["<|y|> chain the dogs", "unchained"]),
    ):
        for text in [TEXT, "ünïcödé 123\n\tthe end", *texts]:
            tokens = source.convert_ids_to_tokens(source(text)["input_ids"])
            ids = merged(text)["input_ids"]
            assert merged.convert_ids_to_tokens(ids) == tokens
            assert merged.decode(ids) == source.decode(source(text)["input_ids"])
            assert merged.decode(ids, skip_special_tokens=True) == source.decode(
                source(text)["input_ids"], skip_special_tokens=True
            )
    assert (merged.bos_token, merged.eos_token) == ("<s>", "</s>")


def test_an_extended_vocabulary_is_the_frame_wherever_it_stands(tmp_path: Path) -> None:
    small, large = _tokenizer(["<|x|>"], 280), _tokenizer(["<|y|>"], 300)
    models = [_model(tmp_path / "a", small, 0), _model(tmp_path / "b", large, 1)]
    merged, tokenizer, config = _run(tmp_path, _linear(models, tokenizer={"source": "union"}))
    assert tokenizer.tokenize(TEXT) == large.tokenize(TEXT) != small.tokenize(TEXT)
    assert config["eos_token_id"] == tokenizer.eos_token_id == 1
    assert config["vocab_size"] == merged[EMBED].shape[0] == len(tokenizer) == len(large) + 1
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, tokenizer.get_vocab()["<|x|>"]]


def test_foreign_ordinary_tokens_decode_but_do_not_cut_text(tmp_path: Path) -> None:
    first = _tokenizer(["<|x|>"])
    second = _tokenizer(["<|y|>"], text="merging many models makes merged models; " * 3)
    models = [_model(tmp_path / "a", first, 0), _model(tmp_path / "b", second, 1)]
    merged, tokenizer, _ = _run(tmp_path, _linear(models, tokenizer={"source": "union"}))
    out, own = tokenizer.get_vocab(), second.get_vocab()
    assert set(out) == {*first.get_vocab(), *own}
    assert {token: out[token] for token in first.get_vocab()} == first.get_vocab()
    text = "merging many models and the dogs"
    assert tokenizer.tokenize(text) == first.tokenize(text)
    foreign = [out[token] for token in second.tokenize(text)]
    assert tokenizer.decode(foreign) == text
    only = next(token for token in own if token not in first.get_vocab() and token != "<|y|>")
    assert _marks(merged[EMBED])[out[only]] == 1000 + own[only]


def _other_kind(kind: str, words: Sequence[str], added: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", *words]
    if kind == "unigram":
        vocabulary = [(f"▁{word}" if word != "<unk>" else word, -float(i)) for i, word in enumerate(tokens)]
        backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    else:
        ids = {word: number for number, word in enumerate(tokens)}
        backend = Tokenizer(
            models.WordPiece(ids, unk_token="<unk>")
            if kind == "wordpiece"
            else models.WordLevel(ids, unk_token="<unk>")
        )
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.decoder = decoders.WordPiece()
    backend.normalizer = normalizers.NFC()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(added, normalized=False, special=True)], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "wordlevel"])
def test_unions_of_other_kinds_of_tokenizers(tmp_path: Path, kind: str) -> None:
    sources = [
        _other_kind(kind, ["red", "green", "blue"], "<|x|>"),
        _other_kind(kind, ["blue", "grey"], "<|y|>"),
    ]
    models = [_model(tmp_path / f"m{number}", source, number) for number, source in enumerate(sources)]
    merged, tokenizer, _ = _run(tmp_path, _linear(models, tokenizer={"source": "union"}))
    ids = [source.get_vocab() for source in sources]
    out = tokenizer.get_vocab()
    assert set(out) == {*ids[0], *ids[1]} and sorted(out.values()) == list(range(len(out)))
    assert {token: out[token] for token in ids[0]} == ids[0]
    for source, text in zip(sources, ["green <|x|> blue red", "grey <|y|> blue"], strict=True):
        own = source.convert_ids_to_tokens(source(text)["input_ids"])
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == own
    assert _marks(merged[EMBED])[out["<|y|>"]] == 1000 + ids[1]["<|y|>"]


def test_an_adapter_with_new_tokens_meets_its_base(tmp_path: Path) -> None:
    """The adapter's own tokenizer and resized embedding take part in the union."""
    from safetensors.torch import save_file

    small, large = _tokenizer(), _tokenizer(["<|x|>"])
    base = _model(tmp_path / "base", small, 0)
    adapter = tmp_path / "adapter"
    large.save_pretrained(adapter)
    marks = torch.arange(291.0)[:, None] + 1000 + torch.zeros(WIDTH)
    save_file(
        {f"base_model.model.{EMBED}": marks, f"base_model.model.{HEAD}": -marks},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    recipe = _linear([base, f"{base}+{adapter}"], tokenizer={"source": "union"})
    merged, tokenizer, config = _run(tmp_path, recipe)
    assert config["vocab_size"] == len(tokenizer) == 291
    assert _marks(merged[EMBED])[289:] == [789, 1290]


@pytest.mark.parametrize("source", ["base", "{b}"])
def test_one_models_tokenizer(tmp_path: Path, source: str) -> None:
    left, right = _tokenizer(["<|x|>", "tool"]), _tokenizer(["<|y|>", "<|x|>"])
    a, b = _model(tmp_path / "a", left, 0), _model(tmp_path / "b", right, 1)
    chosen = left if source == "base" else right
    recipe = _linear([a, b], base_model=a, tokenizer_source=source.format(b=b))
    merged, tokenizer, config = _run(tmp_path, recipe)
    assert tokenizer.get_vocab() == chosen.get_vocab()
    assert tokenizer("<|x|> tool <|y|>")["input_ids"] == chosen("<|x|> tool <|y|>")["input_ids"]
    assert config["vocab_size"] == 292
    ids = tokenizer.get_vocab()
    both = (left.get_vocab()["<|x|>"] + 1000 + right.get_vocab()["<|x|>"]) / 2
    assert _marks(merged[EMBED])[ids["<|x|>"]] == both


@pytest.mark.parametrize(
    ("rows", "source", "expected"),
    [
        ((304, 304), "base", 304),
        ((304, 292), "base", 304),
        ((292, 304), "base", 292),
        ((292, 304), "union", 304),
        ((304, 292), "union", 304),
    ],
)
def test_padded_rows_are_kept(tmp_path: Path, rows: tuple[int, int], source: str, expected: int) -> None:
    """Rows beyond the tokens: as many as the source has (union: as the largest has), each with its own."""
    tokenizer = _tokenizer(["<|x|>", "tool"])
    models = [_model(tmp_path / f"m{i}", tokenizer, i, count) for i, count in enumerate(rows)]
    merged, made, config = _run(tmp_path, _linear(models, tokenizer={"source": source}))
    assert config["vocab_size"] == merged[EMBED].shape[0] == expected
    assert len(made) == 292
    for row in range(expected):
        owners = [row + 1000 * i for i, count in enumerate(rows) if row < count]
        assert _marks(merged[EMBED])[row] == sum(owners) / len(owners)


def test_new_tokens_use_up_padding(tmp_path: Path) -> None:
    left, right = _tokenizer(["<|x|>"]), _tokenizer(["<|y|>"])
    models = [_model(tmp_path / "a", left, 0, 304), _model(tmp_path / "b", right, 1, 304)]
    merged, tokenizer, config = _run(tmp_path, _linear(models, tokenizer={"source": "union"}))
    assert config["vocab_size"] == 304
    assert tokenizer.get_vocab()["<|y|>"] == 291
    assert _marks(merged[EMBED])[290:293] == [290, 1290, 792]


def test_pad_to_multiple_of(tmp_path: Path) -> None:
    left, right = _tokenizer(["<|x|>"]), _tokenizer(["<|y|>"])
    models = [_model(tmp_path / "a", left, 0, 500), _model(tmp_path / "b", right, 1)]
    settings = {"source": "union", "pad_to_multiple_of": 64}
    merged, tokenizer, config = _run(tmp_path, _linear(models, tokenizer=settings))
    assert (len(tokenizer), config["vocab_size"], merged[HEAD].shape[0]) == (292, 320, 320)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"source": "{b}"}, [290, 1291]),
        ({"source": "{b}", "force": True}, [1291, 1291]),
        ({"source": {"kind": "zero"}, "force": True}, [0, 0]),
        ({"source": {"kind": "model_token", "model": "{a}", "token": "<s>"}, "force": True}, [0, 0]),
        ({"source": {"kind": "model_token", "model": "{b}", "token_id": 7}, "force": True}, [1007, 1007]),
        ({"force": True}, [290, 290]),
    ],
)
def test_settings_of_one_token(tmp_path: Path, setting: dict[str, Any], expected: list[float]) -> None:
    a = _model(tmp_path / "a", _tokenizer(["<|x|>"]), 0)
    b = _model(tmp_path / "b", _tokenizer(["<|y|>", "<|x|>"]), 1)
    text = json.dumps(setting).replace("{a}", a).replace("{b}", b)
    settings = {"source": "union", "tokens": {"<|x|>": json.loads(text)}}
    merged, tokenizer, _ = _run(tmp_path, _linear([a, b], base_model=a, tokenizer=settings))
    row = _marks(merged[EMBED])[tokenizer.get_vocab()["<|x|>"]]
    assert row == sum(expected) / 2


def test_missing_tokens_take_what_their_setting_says(tmp_path: Path) -> None:
    a = _model(tmp_path / "a", _tokenizer(), 0)
    b = _model(tmp_path / "b", _tokenizer(["<|y|>"]), 1)
    aide = _model(tmp_path / "aide", _tokenizer(["<|z|>"]), 5)
    tokens = {
        "<|y|>": {"source": {"kind": "zero"}},
        "<|z|>": {"source": aide},
        "<|new|>": {"source": {"kind": "model_token", "model": b, "token": "</s>"}},
    }
    merged, tokenizer, _ = _run(tmp_path, _linear([a, b], tokenizer={"source": "union", "tokens": tokens}))
    ids, marks = tokenizer.get_vocab(), _marks(merged[EMBED])
    assert marks[ids["<|y|>"]] == (0 + 1290) / 2
    assert marks[ids["<|z|>"]] == 5290
    assert marks[ids["<|new|>"]] == 1001
    assert tokenizer.tokenize("a<|new|>b") == ["a", "<|new|>", "b"]


def test_tied_models_stay_tied_and_bf16_is_rounded_once(tmp_path: Path) -> None:
    added = (["x", "p"], ["y", "q", "p"], ["p", "y", "q"])
    tokenizers = [_tokenizer([f"<|{token}|>" for token in tokens]) for tokens in added]
    models = []
    for number, tokenizer in enumerate(tokenizers):
        place = Path(_model(tmp_path / f"m{number}", tokenizer, number, dtype=torch.bfloat16))
        state = {name: tensor for name, tensor in read_folder(place).items() if name != HEAD}
        state[EMBED] = torch.randn(
            state[EMBED].shape, generator=torch.Generator().manual_seed(number)
        ).bfloat16()
        config = {**CONFIG, "vocab_size": len(tokenizer), "tie_word_embeddings": True}
        models.append(str(write_folder(place, state, config=config)))
    merged, tokenizer, config = _run(tmp_path, _linear(models, tokenizer={"source": "union"}))
    assert HEAD not in merged and config["tie_word_embeddings"] is True
    ids, out = [t.get_vocab() for t in tokenizers], tokenizer.get_vocab()
    tables = [read_folder(Path(model))[EMBED].double() for model in models]
    for token, row in out.items():
        owned = [table[own[token]] for table, own in zip(tables, ids, strict=True) if token in own]
        mean = torch.stack(owned).mean(dim=0)
        filled = [*owned, *[mean.float().double()] * (3 - len(owned))]
        torch.testing.assert_close(
            merged[EMBED][row], torch.stack(filled).mean(dim=0).bfloat16(), rtol=2**-8, atol=1e-6
        )
        if len(owned) == 1:
            assert_same_bits(merged[EMBED][row], owned[0].bfloat16())


def test_a_tied_model_beside_an_untied_one(tmp_path: Path) -> None:
    """Rows of the head that the tied one lacks come from the other's head, not from its embedding."""
    a = _model(tmp_path / "a", _tokenizer(["<|x|>"]), 0)
    state = {name: tensor for name, tensor in read_folder(Path(a)).items() if name != HEAD}
    write_folder(Path(a), state, config={**CONFIG, "vocab_size": 291, "tie_word_embeddings": True})
    b = _model(tmp_path / "b", _tokenizer(["<|y|>"]), 1)
    merged, tokenizer, config = _run(tmp_path, _linear([a, b], tokenizer={"source": "union"}))
    ids, head = tokenizer.get_vocab(), _marks(merged[HEAD])
    assert config["tie_word_embeddings"] is False
    assert head[ids["<|y|>"]] == -1290
    assert head[ids["<|x|>"]] == 290
    assert head[5] == (5 - 1005) / 2


def test_the_result_loads_and_generates(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    models = [_model(tmp_path / f"m{i}", _tokenizer([f"<|{i}|>"]), 0, 300) for i in range(2)]
    recipe = _linear(models, tokenizer={"source": "union"}, chat_template="chatml")
    _, tokenizer, _ = _run(tmp_path, recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "the dogs"}], add_generation_prompt=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        made = model.generate(prompt["input_ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape[1] > prompt["input_ids"].shape[1]
    assert model.get_input_embeddings().weight.shape[0] == 300


def test_any_block_of_gathered_rows_reads_the_same(tmp_path: Path) -> None:
    added = (["<|x|>", "p"], ["<|y|>", "q", "<|x|>"], ["q", "p", "<|y|>"])
    tokenizers = [_tokenizer(tokens, 270) for tokens in added]
    models = [open_model(_model(tmp_path / f"m{i}", t, i, 280)) for i, t in enumerate(tokenizers)]
    aligned = align(TokenizerSettings(), models, None, 0)
    generator = np.random.default_rng(0)
    for model in aligned.models:
        info = model.tensors[EMBED]
        whole = model.read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8)).copy()
        for _ in range(50):
            first, last = sorted(generator.integers(0, info.count + 1, 2).tolist())
            buffer = np.empty((last - first) * 4, np.uint8)
            assert np.array_equal(model.read(info, first * 4, last * 4, buffer), whole[first * 4 : last * 4])
        model.close()


def test_a_union_of_two_large_vocabularies_takes_under_a_second(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    opened = []
    for number in range(2):
        words = [f"w{i}" for i in range(32000 - 2000 * number)] + [f"own{number}.{i}" for i in range(2000)]
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")
        state = {EMBED: torch.zeros(len(words), 2, dtype=torch.bfloat16)}
        folder = write_folder(tmp_path / f"m{number}", state)
        tokenizer.save_pretrained(folder)
        opened.append(open_model(str(folder)))
    from merge_models.merge.checkpoint.tokenizers import load_tokenizer

    began = time.process_time()
    for model in opened:
        load_tokenizer(model)
    loading = time.process_time() - began
    began = time.process_time()
    aligned = align(TokenizerSettings(), opened, None, 0)
    assert time.process_time() - began - loading < 1
    assert aligned.rows == 36000 - 2000 + 2000 - 0


OF = {"kind": "model_token", "model": "{0}"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tokenizer": {"source": "union", "tokns": {}}}, RecipeError, "tokenizer: unknown key 'tokns'"),
        ({"tokenizer": {"tokens": {"a": {"forced": True}}}}, RecipeError, "unknown key 'forced'"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, RecipeError, "greater than or equal to 1"),
        ({"tokenizer": {}, "tokenizer_source": "union"}, RecipeError, "not both"),
        (
            {"tokenizer": {"tokens": {"t": {"source": OF}}}},
            RecipeError,
            "needs token or token_id",
        ),
        (
            {"tokenizer": {"tokens": {"t": {"source": {"kind": "one"}}}}},
            RecipeError,
            "kind model_token or zero",
        ),
        ({"tokenizer": {"tokens": {"<|no|>": {"force": True}}}}, RecipeError, "is in no tokenizer"),
        (
            {"tokenizer": {"tokens": {"<s>": {"source": {**OF, "token": "<S>"}}}}},
            RecipeError,
            "has no token '<S>'; did you mean '<s>'",
        ),
        (
            {"tokenizer": {"tokens": {"<s>": {"source": {**OF, "token_id": 900}}}}},
            RecipeError,
            "has 290 rows, none for 900",
        ),
        ({"chat_template": "chatmll"}, RecipeError, "did you mean 'chatml'"),
        ({"chat_template": "{% if %}"}, RecipeError, "not valid Jinja near line 1"),
        ({}, PlanError, r"vocabularies differ: add 'tokenizer: \{source: union\}' to the recipe"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    a, b = _model(tmp_path / "a", _tokenizer(), 0), _model(tmp_path / "b", _tokenizer(["<|y|>"]), 1)
    change = json.loads(json.dumps(change).replace("{0}", a))
    with pytest.raises(error, match=words) as raised:
        run_recipe(parse_recipe(_linear([a, b], **change)), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_tokenizer_is_told(tmp_path: Path) -> None:
    a, b = _model(tmp_path / "a", _tokenizer(), 0), _model(tmp_path / "b", _tokenizer(), 1)
    for file in Path(b).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        Exception, match="b: has no tokenizer; add its files, or leave 'tokenizer' out"
    ) as raised:
        run_recipe(parse_recipe(_linear([a, b], tokenizer_source="union")), tmp_path / "out")
    assert "\n" not in str(raised.value)


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye?"},
]
RENDERED = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi?\n\n### Response:\nHello.</s>\n\n### Instruction:\nBye?\n\n"
    "### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi?\n[|assistant|]Hello.[|endofturn|]\n"
    "[|user|]Bye?\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi? [/INST] Hello.</s>[INST] Bye? [/INST]",
}


@pytest.mark.parametrize("name", [*BUILT_IN, "own"])
@pytest.mark.parametrize("rebuilt", [False, True])
def test_chat_templates_are_read_back(tmp_path: Path, name: str, rebuilt: bool) -> None:
    model = _model(tmp_path / "a", _tokenizer(), 0)
    text = "{% for m in messages %}{{ m['content'] }}/{% endfor %}" if name == "own" else name
    recipe = _linear([model], chat_template=text, **({"tokenizer_source": "base"} if rebuilt else {}))
    _, tokenizer, _ = _run(tmp_path, recipe)
    shown = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert shown == RENDERED.get(name, "Be brief./Hi?/Hello./Bye?/")
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["chat_template"] == (tmp_path / "out/chat_template.jinja").read_text()
    assert str(tmp_path) not in json.dumps(settings)


@pytest.mark.parametrize("limit", [100, 2000])
def test_a_full_disk_is_one_line(limit: int, tmp_path: Path) -> None:
    """transformers writes the small file and tokenizers the large one, each with errors of its own."""
    tokenizer, before = _tokenizer(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match="tokenizer cannot be written: File too large.*; make room"):
            save_tokenizer(tokenizer, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_auto_takes_the_template_that_most_models_have(tmp_path: Path) -> None:
    models = []
    for number, template in enumerate(["{{ 'a' }}", "{{ 'b' }}", "{{ 'b' }}"]):
        tokenizer = _tokenizer()
        tokenizer.chat_template = template
        models.append(_model(tmp_path / f"m{number}", tokenizer, number))
    _, tokenizer, _ = _run(tmp_path, _linear(models, chat_template="auto"))
    assert tokenizer.chat_template == "{{ 'b' }}"
    recipe = yaml.safe_load((tmp_path / "out/README.md").read_text().split("```yaml\n")[1].split("```")[0])
    assert recipe["chat_template"] == "auto"
