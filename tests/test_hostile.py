"""Folders, recipes and names that were made to deceive: what is opened, what is run, what is shown."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import merge_models.merge
from merge_models.merge import (
    ChangedError,
    CheckpointError,
    MergeError,
    RecipeError,
    merge,
    run_recipe,
    strategies,
)
from merge_models.merge.checkpoint import open_checkpoint
from merge_models.merge.checkpoint.guard import MAX_VALUES, is_simple, parse_json
from merge_models.merge.checkpoint.header import MAX_NAME
from merge_models.merge.checkpoint.text import code_span, fenced, html, printable, visible
from merge_models.merge.checkpoint.tokenizers import load_tokenizer
from merge_models.merge.recipes.strict_yaml import MAX_VALUES as MAX_RECIPE_VALUES
from merge_models.merge.recipes.strict_yaml import parse_yaml
from merge_models.merge.strategies import Linear, TaskArithmetic
from tests.helpers import (
    entry,
    listing,
    merge_folders,
    tensors,
    write_folder,
    write_json,
    write_models,
    write_raw,
)

TRICKS = "\x1b[31m\x07\x00\r\u202e\u2066\u200b\u2028\ufeff\U000e0041"


# What is shown


def test_nothing_invisible_is_shown() -> None:
    for show in (printable, visible, code_span, fenced, html):
        shown = show(f"a{TRICKS}b")
        assert shown.isprintable() and shown.startswith("a") and shown.endswith("b"), show


def test_markup_stays_text() -> None:
    assert html("<img src=x onerror='f()'>\"&") == "&lt;img src=x onerror=&#x27;f()&#x27;&gt;&quot;&amp;"
    assert "`" not in code_span("a`b``c") and "\n" not in code_span("a\n# b")
    assert "```" not in fenced("x\n```\n# heading\n~~~") and fenced("a\nb\n") == "a\nb\n"
    assert len(printable("x" * 10**6)) == 121


def test_cards_show_what_names_hide(tmp_path: Path) -> None:
    name = "a\u202e\u2066<b>`x`\n---\n# Heading"
    folder = write_folder(tmp_path / name, tensors(1))
    merge_folders([folder, folder], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in card.split("\n"))
    assert card.count("\n---\n") == 1 and "\n# Heading" not in card
    head, _, rest = card.partition("\n---\n")
    assert yaml.safe_load(head.removeprefix("---\n"))["tags"] == ["merge", "merge-models"]
    before, fence, recipe = rest.partition("```yaml\n")
    assert "<b>" not in re.sub("`[^`\n]*`", "", before)
    recipe = recipe.partition("```")[0]
    assert fence and recipe


# What is opened


def _link(name: str, target: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


LINKS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    # what is done to a model's folder, whether it is refused
    "config to a secret": (_link("config.json", "../secret.json"), True),
    "tokenizer to a secret": (_link("tokenizer.json", "../secret.json"), True),
    "nested file to a secret": (_link("1_Pooling/config.json", "../../secret.json"), True),
    "folder to another": (_link("1_Pooling", "../other"), True),
    "licence to a system file": (_link("LICENSE", "/etc/passwd"), True),
    "inside the folder": (_link("tokenizer.json", "spare.json"), False),
    "same name in another folder": (_link("tokenizer.json", "../other/tokenizer.json"), False),
    "of no interest": (_link("notes.docx", "../secret.json"), False),
    "a blob of the Hub's cache": (_link("tokenizer.json", "../hub/models--o--m/blobs/0123"), False),
    "what else is in that cache": (_link("tokenizer.json", "../hub/models--o--m/refs/main"), True),
    "its token": (_link("tokenizer.json", "../hub/models--o--m/blobs/../../token"), True),
    "blobs of something else": (_link("tokenizer.json", "../keys/blobs/0123"), True),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_that_lead_out_of_a_model(case: str, tmp_path: Path) -> None:
    make, is_refused = LINKS[case]
    (tmp_path / "secret.json").write_text('{"password": 1}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text("{}")
    for name in ("models--o--m/blobs/0123", "models--o--m/refs/main", "token", "../keys/blobs/0123"):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_text("{}")
    folder = write_folder(tmp_path / "a", tensors(1), files={"spare.json": "{}"})
    make(folder)
    before = listing(tmp_path)
    if is_refused:
        with pytest.raises(CheckpointError, match=r"is a link to .*, which is no part of the model; put the"):
            merge([folder], out=tmp_path / "out")
        assert listing(tmp_path) == before
    else:
        merge_folders([folder], tmp_path / "out")
        assert b"password" not in b"".join(listing(tmp_path / "out").values())


BOMBS: dict[str, bytes] = {
    "lists": b'{"a":[' + b"[]," * (MAX_VALUES // 2) + b"[]]}",
    "maps": b'{"a":[' + b"{}," * (MAX_VALUES // 2) + b"{}]}",
    "numbers": b'{"a":[' + b"0," * (MAX_VALUES + 1) + b"0]}",
    "digits": b'{"a":' + b"9" * 10_000 + b"}",
    "depth": b'{"a":' * 2000 + b"1" + b"}" * 2000,
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_json_bombs_are_refused_unread(bomb: str, name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", tensors(1))
    if name == "model.safetensors":
        write_raw(folder / name, BOMBS[bomb])
    else:
        if "index" in name:
            (folder / "model.safetensors").rename(folder / "x.safetensors")
        (folder / name).write_bytes(BOMBS[bomb])
    with pytest.raises(CheckpointError, match="JSON"):
        open_checkpoint(folder)


def test_a_large_index_is_no_bomb() -> None:
    names = {
        f"model.layers.{n}.mlp.experts.{n}.up_proj.weight": "model-00001.safetensors" for n in range(10**5)
    }
    assert len(parse_json(json.dumps({"weight_map": names}).encode())["weight_map"]) == 10**5


def test_names_may_be_strange_but_not_endless(tmp_path: Path) -> None:
    for length, fits in ((MAX_NAME, True), (MAX_NAME + 1, False)):
        file = write_raw(tmp_path / f"{length}.safetensors", {"n" * length: entry("U8", [1], 0, 1)}, b"x")
        if fits:
            assert open_checkpoint(file).tensors
        else:
            with pytest.raises(CheckpointError, match="its name has 1001 letters"):
                open_checkpoint(file)


def laughs(step: str, count: int, first: str = "[x]") -> str:
    """Each of many values made of the one before it."""
    return f"a0: &a0 {first}\n" + "".join(
        f"a{n + 1}: &a{n + 1} {step.format(f'a{n}')}\n" for n in range(count)
    )


YAML_BOMBS = {
    "aliases of lists": laughs("[*{0}, *{0}]", 40),
    "aliases of maps": laughs("{{a: *{0}, b: *{0}}}", 40),
    "merged maps": laughs("{{<<: [*{0}, *{0}]}}", 40, "{k: 1}"),
    "aliases of a text": f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 20}]",
    "aliases of many values": f"a: &a [{'1, ' * 1000}]\nb: [{'*a, ' * 100}]",
    "aliases in depth": laughs("[*{0}]", 100),
    "a list in itself": "a: &a [*a]",
    "a map in itself": "a: &a {b: {c: *a}}",
    "a map merged into itself": "a: &a {b: {<<: *a}}",
    "an unknown alias": "a: *a",
    "an anchor twice": "a: &a 1\nb: &a 2",
    "many values": f"a: [{'1,' * MAX_RECIPE_VALUES}]",
    "depth": "a: " + "[" * 100_000,
    "dashes": "- " * 10_000,
    "questions": "? " * 10_000,
    "digits of base 60": "a: 1" + ":1" * 10_000,
    "float of base 60": "a: 1" + ":1" * 480 + ".5",
    "bits": "a: 0b" + "1" * 100_000,
    "tag": "a: !!python/object/apply:os.system [echo]",
    "no date": "a: 2020-99-99",
}


@pytest.mark.parametrize("bomb", YAML_BOMBS)
def test_yaml_bombs_are_refused(bomb: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML") as caught:
        parse_yaml(YAML_BOMBS[bomb])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "simple"),
    [
        ("q_proj", True), (r"^model\.layers\.[0-9]+\.(q|v)_proj", True), (".*attn.*", True),
        ("(?:q|k)_proj", True), ("[*+{]+x", True), (r"a\(b\)", True),
        ("(a+)+b", False), ("(a|a)*", False), (r"(.*)\1", False), ("(?=a)", False), (".*.*.*", False),
        ("x" * 500, False), ("a{1,9}{1,9}{1,9}", False),
    ],
)  # fmt: skip
def test_patterns_that_could_take_for_ever(pattern: str, simple: bool) -> None:
    assert is_simple(pattern) is simple


# What is run

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
MAPPED = {
    "auto_map": {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    },
    "tokenizer_class": "Evil",
}


def test_code_in_a_folder_is_neither_run_nor_copied(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    config = {"model_type": "llama", "architectures": ["Evil"], **MAPPED}
    for seed, name in enumerate("ab"):
        files = {"evil.py": EVIL, "__init__.py": EVIL, "sub/evil.py": EVIL}
        folder = write_folder(tmp_path / name, tensors(seed), config=config, files=files)
        _tokenizer().save_pretrained(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        write_json(folder / "tokenizer_config.json", {**settings, **MAPPED})
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / n)} for n in "ab"],
        "tokenizer": {"source": "union"},
    }
    modules = set(sys.modules)
    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
    try:
        run_recipe(tmp_path / "r.yml", tmp_path / "out")
    except MergeError as error:
        assert "its tokenizer cannot be loaded" in str(error)
    assert not list(tmp_path.rglob("ran")) and not list((tmp_path / "out").rglob("*.py"))
    assert not any("evil" in name for name in set(sys.modules) - modules)
    merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "plain")
    assert not list((tmp_path / "plain").rglob("*.py")) and not list(tmp_path.rglob("ran"))
    assert isinstance(load_tokenizer(open_checkpoint(_mapped(tmp_path))).tokenizer, PreTrainedTokenizerFast)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{n}": n for n in range(11)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))


def _mapped(place: Path) -> Path:
    """A model whose tokenizer's settings name other files, but whose own class is one of transformers'."""
    folder = write_folder(place / "mapped", tensors(1))
    _tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    outside = {"vocab_file": "/etc/passwd", "tokenizer_file": "/etc/passwd", "name_or_path": "/etc"}
    write_json(folder / "tokenizer_config.json", {**settings, **outside, "auto_map": MAPPED["auto_map"]})
    return folder


def test_a_config_s_sizes_build_nothing(tmp_path: Path) -> None:
    """transformers makes a list of layers as soon as it reads a config, here for a tokenizer."""
    config = {"model_type": "qwen2", "num_hidden_layers": 10**12, "vocab_size": 10**15}
    folder = write_folder(tmp_path / "a", tensors(1), config=config)
    _tokenizer().save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(open_checkpoint(folder)).ids


# What changes while it is read


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 64)


def _rewrite(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\0\0\0\0")
    os.utime(file, ns=(0, 0))  # some file systems' clocks tick slower than this test runs


def _replace(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    os.utime(copy, ns=(0, file.stat().st_mtime_ns))
    os.replace(copy, file)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "cut": _cut,
    "rewritten": _rewrite,
    "replaced by its like": _replace,
    "removed": Path.unlink,
    "grown": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["at the first block", "at the last block"])
@pytest.mark.parametrize("whose", ["m0", "m1", "base"])
def test_a_shard_that_changes_during_a_run(change: str, moment: str, whose: str, tmp_path: Path) -> None:
    """One clean error that names the file, no target, nothing left of what was made of it."""
    paths = write_models(tmp_path, 2)
    base = write_folder(tmp_path / "base", tensors(9), shards=3)
    file = sorted((tmp_path / whose).glob("*.safetensors"))[-1]
    done: list[int] = []

    def progress(nbytes: int) -> None:
        done.append(nbytes)
        if len(done) == (1 if moment == "at the first block" else len(tensors(0))):
            CHANGES[change](file)

    with pytest.raises(ChangedError, match=rf"{whose}/{file.name}: (has changed|ended inside)") as caught:
        merge(paths, TaskArithmetic(), base=base, out=tmp_path / "out", threads=1, progress=progress)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["base", "m0", "m1"]


# Small things that misled


def test_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 99)
    for path in (tmp_path, tmp_path / "x.gguf"):
        with pytest.raises(CheckpointError, match="GGUF.*not supported as an input; convert it"):
            open_checkpoint(path)


@pytest.mark.parametrize("option", ["weights", "weight", "thread", "zzz"])
def test_unknown_options_are_errors_of_ours(option: str, tmp_path: Path) -> None:
    call: Any = merge
    places: list[Any] = [(write_models(tmp_path, 2), {"out": tmp_path / "out"}), ([tensors(0)], {})]
    for models, more in places:
        with pytest.raises(RecipeError) as caught:
            call(models, Linear(), **more, **{option: [1.0]})
        hints = {"thread": "'threads'", "zzz": "known: "}
        assert f"no {option}=" in str(caught.value) and hints.get(option, "Linear(weight=") in str(
            caught.value
        )


def test_all_names_are_exported() -> None:
    module = merge_models.merge
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert {"merge", "soup", "run_recipe", "MergeError"} <= set(module.__all__)
    assert len(module.__all__) <= 20
    assert all(getattr(strategies, kind.__name__) is kind for kind in strategies.STRATEGIES)


@pytest.mark.parametrize(
    ("files", "library"), [({"modules.json": "[]"}, "sentence-transformers"), ({}, "transformers")]
)
def test_the_card_names_the_library(files: dict[str, str], library: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", tensors(1), files=files)
    merge_folders([folder], tmp_path / "out")
    assert f"library_name: {library}\n" in (tmp_path / "out" / "README.md").read_text()


NESTED = {"language_model.model.embed_tokens.weight": (11, 8), "vision.embed_tokens.weight": (3, 2)}
NESTED_HEAD = "language_model.lm_head.weight"


def _nested(place: Path, seed: int, tied: bool | None) -> Path:
    state = tensors(seed, shapes=NESTED)
    if tied is False:
        state[NESTED_HEAD] = torch.full((11, 8), float(seed))
    said = {} if tied is None else {"tie_word_embeddings": tied}
    return write_folder(
        place, state, config={"model_type": "llava", "text_config": {"model_type": "llama", **said}}
    )


@pytest.mark.parametrize("tied", [True, None])
def test_nested_heads_are_tied_to_their_own_embedding(tied: bool | None, tmp_path: Path) -> None:
    paths = [_nested(tmp_path / "a", 1, tied), _nested(tmp_path / "b", 2, False)]
    merged = merge_folders(paths, tmp_path / "out")
    expected = (tensors(1, shapes=NESTED)["language_model.model.embed_tokens.weight"] + 2) / 2
    torch.testing.assert_close(merged[NESTED_HEAD], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"].get("tie_word_embeddings") is False


def test_a_nested_head_that_is_said_to_be_there_is_missed(tmp_path: Path) -> None:
    first = write_folder(
        tmp_path / "a", tensors(1, shapes=NESTED), config={"text_config": {"tie_word_embeddings": False}}
    )
    with pytest.raises(MergeError, match=rf"a: has no tensor '{NESTED_HEAD}'"):
        merge([first, _nested(tmp_path / "b", 2, False)], out=tmp_path / "out")
    assert not os.path.exists(tmp_path / "out")
