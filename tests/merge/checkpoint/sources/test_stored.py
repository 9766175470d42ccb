"""Checkpoints in: every dtype, every layout, and every way in which a file can lie."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_models.merge import CheckpointError
from merge_models.merge.checkpoint import open_checkpoint, read_header
from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from tests.helpers import (
    CONFIG,
    assert_same_bits,
    entry,
    merge_folders,
    merge_states,
    point_hub,
    tensors,
    write_folder,
    write_hub,
    write_json,
    write_models,
    write_raw,
)

SHAPES = {"matrix": (5, 3), "scalar": (), "empty": (0, 4), "hollow": (3, 0, 2), "row": (1, 9), "one": (1,)}


def values(code: str, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a dtype in awkward shapes, with random finite bits."""
    dtype, generator = getattr(torch, BY_CODE[code].torch_name), torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in SHAPES.items():
        if BY_CODE[code].is_float:
            state[name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            high = 2 if code == "BOOL" else 100
            state[name] = torch.randint(0, high, shape, generator=generator).to(dtype)
    return state


def read_all(model: Checkpoint) -> dict[str, bytes]:
    found = {}
    for name, info in model.tensors.items():
        buffer = np.empty(info.nbytes, dtype=np.uint8)
        found[name] = model.read(info, 0, info.nbytes, buffer).tobytes()
    model.close()
    return found


def as_bytes(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {
        name: t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        for name, t in state.items()
    }


def refusal(path: Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_all(open_checkpoint(path))
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


# Every dtype, every layout


@pytest.mark.parametrize("code", BY_CODE)
def test_every_dtype_goes_in_and_out(code: str, tmp_path: Path) -> None:
    state = values(code)
    folder = write_folder(tmp_path / "a", state)
    assert read_all(open_checkpoint(folder)) == as_bytes(state)
    merged = merge_folders([folder, folder], tmp_path / "out")
    in_memory = merge_states([state, state])
    assert merged.keys() == state.keys() == in_memory.keys()
    for name, tensor in state.items():
        assert_same_bits(merged[name], tensor, name)
        assert_same_bits(in_memory[name], tensor, name)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_do_not_matter(shards: int, tmp_path: Path) -> None:
    state = {**tensors(1), **values("I64"), **{f"b.{k}": v for k, v in values("F8_E5M2").items()}}
    model = open_checkpoint(write_folder(tmp_path / "a", state, shards=shards))
    assert (len(model.files), model.config) == (shards, CONFIG)
    assert model.nbytes == sum(tensor.nbytes for tensor in state.values())
    assert read_all(model) == as_bytes(state)


def test_a_file_or_an_oddly_named_one_is_a_bare_state_dict(tmp_path: Path) -> None:
    state, folder = tensors(1), tmp_path / "with space, ünïcode"
    folder.mkdir()
    save_file(state, folder / "weights v2.safetensors")
    for path in (folder, folder / "weights v2.safetensors"):
        model = open_checkpoint(path)
        assert (model.config, read_all(model)) == ({}, as_bytes(state))
    out = tmp_path / "out"
    merge_folders([folder, folder / "weights v2.safetensors"], out)
    assert sorted(f.name for f in out.iterdir()) == ["README.md", "merge_manifest.json", "model.safetensors"]


def test_a_single_file_wins_over_an_index_as_in_transformers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", tensors(1), shards=2)
    save_file(tensors(2), folder / "model.safetensors")
    assert read_all(open_checkpoint(folder)) == as_bytes(tensors(2))


def test_links_are_followed(tmp_path: Path) -> None:
    """As in the Hub's cache, where a snapshot is a folder of links."""
    real = write_folder(tmp_path / "blobs", tensors(1), shards=2)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(file)
    (tmp_path / "link").symlink_to(snapshot)
    assert read_all(open_checkpoint(tmp_path / "link")) == as_bytes(tensors(1))


def test_any_part_of_a_tensor_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system gives fewer bytes than asked for."""
    model = open_checkpoint(write_folder(tmp_path / "a", {"x": torch.arange(1000)}))
    whole = torch.arange(1000).numpy().tobytes()
    given = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: given(fd, [views[0][:7]], at))
    buffer = np.empty(8000, dtype=np.uint8)
    for start, stop in [(0, 8000), (8, 16), (4000, 8000), (24, 24), (7992, 8000)]:
        assert model.read(model.tensors["x"], start, stop, buffer).tobytes() == whole[start:stop]
    model.close()


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(tmp_path: Path) -> None:
    """Header lengths 0x280, 0x380, … start with the bytes of a pickle's protocol mark."""
    for length in (0x280, 0x380, 0x480, 0x580):
        text = json.dumps({"x": entry("F32", [1], 0, 4)}).encode().ljust(length)
        file = write_raw(tmp_path / f"{length}.safetensors", text, b"1234")
        assert file.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        assert list(read_header(file).tensors) == ["x"]


# Files that lie

F32 = entry("F32", [1], 0, 4)
BAD_HEADERS: dict[str, tuple[Any, bytes, list[str]]] = {
    "no json": (b"\xff\xfe", b"", ["JSON"]),
    "empty": (b"", b"", ["JSON"]),
    "a list": ([], b"", ["JSON object"]),
    "deep lists": (b"[" * 100_000, b"", ["JSON"]),
    "deep maps": (b'{"x":' * 100_000, b"", ["JSON"]),
    "huge number": (b'{"x":{"shape":[' + b"9" * 9000 + b"]}}", b"", ["JSON"]),
    "NaN size": (b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234", ["'x'", "shape"]),
    "infinite size": (
        b'{"x":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}',
        b"1234",
        ["'x'", "shape"],
    ),
    "tensor twice": (b'{"x":1,"x":2}', b"", ["'x' twice"]),
    "key twice": (b'{"x":{"dtype":"F32","dtype":"F32"}}', b"", ["'dtype' twice"]),
    "half a surrogate": ({"\ud800": F32}, b"1234", ["Unicode"]),
    "surrogate in metadata": ({"__metadata__": {"a": "\udfff"}, "x": F32}, b"1234", ["Unicode"]),
    "metadata is a list": ({"__metadata__": [], "x": F32}, b"1234", ["__metadata__"]),
    "metadata is null": ({"__metadata__": None, "x": F32}, b"1234", ["__metadata__"]),
    "metadata has numbers": ({"__metadata__": {"a": 1}, "x": F32}, b"1234", ["__metadata__"]),
    "entry is a number": ({"x": 5}, b"", ["'x'", "data_offsets"]),
    "entry lacks shape": ({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234", ["'x'", "shape"]),
    "entry has more": ({"x": {**F32, "y": 1}}, b"1234", ["'x'", "must have"]),
    "unknown dtype": ({"x": entry("F7", [1], 0, 4)}, b"1234", ["'x'", "unknown dtype 'F7'", "BF16"]),
    "packed dtype": ({"x": entry("F4", [2], 0, 1)}, b"1", ["'x'", "unknown dtype 'F4'"]),
    "dtype with escapes": ({"x": entry("\x1b[31m\n", [1], 0, 4)}, b"1234", ["'x'", r"\x1b[31m\x0a"]),
    "dtype is a list": ({"x": {**F32, "dtype": ["F32"]}}, b"1234", ["'x'", "unknown dtype"]),
    "negative size": ({"x": entry("F32", [-1], 0, 4)}, b"1234", ["'x'", "shape"]),
    "two negative sizes": ({"x": entry("F32", [-1, -1], 0, 4)}, b"1234", ["'x'", "shape"]),
    "boolean size": ({"x": entry("F32", [True], 0, 4)}, b"1234", ["'x'", "shape"]),
    "fractional size": ({"x": entry("F32", [1.0], 0, 4)}, b"1234", ["'x'", "shape"]),
    "astronomic size": ({"x": entry("F32", [2**61] * 64, 0, 4)}, b"1234", ["'x'", "takes", "span 4"]),
    "overflowing size": ({"x": entry("F32", [2**32, 2**32], 0, 0)}, b"", ["'x'", "takes", "span 0"]),
    "too many dimensions": ({"x": entry("F32", [1] * 65, 0, 4)}, b"1234", ["'x'", "shape"]),
    "shape and offsets differ": ({"x": entry("F32", [2], 0, 4)}, b"1234", ["'x'", "8 bytes", "span 4"]),
    "offsets reversed": ({"x": entry("F32", [1], 4, 0)}, b"1234", ["'x'", "span -4"]),
    "negative offset": ({"x": entry("F32", [1], -4, 0)}, b"1234", ["'x'", "data_offsets"]),
    "offsets are words": ({"x": entry("F32", [1], "0", "4")}, b"1234", ["'x'", "data_offsets"]),
    "three offsets": ({"x": {**F32, "data_offsets": [0, 4, 8]}}, b"1234", ["'x'", "data_offsets"]),
    "overlap": ({"x": F32, "y": entry("F32", [1], 2, 6)}, b"123456", ["'y'", "overlaps"]),
    "same place twice": ({"x": F32, "y": F32}, b"1234", ["'y'", "overlaps"]),
    "hole": ({"x": F32, "y": entry("F32", [1], 6, 10)}, b"1234567890", ["'y'", "2 stray bytes"]),
    "starts late": ({"x": entry("F32", [1], 4, 8)}, b"12345678", ["'x'", "4 stray bytes"]),
    "past the end": ({"x": F32}, b"12", ["'x'", "truncated"]),
    "far past the end": ({"x": entry("F32", [1], 2**61, 2**61 + 4)}, b"1234", ["'x'", "truncated"]),
    "bytes left over": ({"x": F32}, b"12345", ["1 stray bytes"]),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_lying_headers_are_refused(case: str, tmp_path: Path) -> None:
    header, data, words = BAD_HEADERS[case]
    file = write_raw(tmp_path / "model.safetensors", header, data)
    text = refusal(file)
    for word in [str(file), *words, "again" if "dtype" not in case or case == "key twice" else ""]:
        assert word in text, text


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)


def _write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def _index(weight_map: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        write_json(folder / "model.safetensors.index.json", weight_map)

    return make


def _link(name: str, target: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def _only(name: str, content: bytes = b"") -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    return make


def _both(folder: Path) -> None:
    save_file(tensors(1), folder / "part.safetensors")
    _index({"weight_map": {"lm_head.weight": "part.safetensors", "x": "p2.safetensors"}})(folder)
    save_file({"x": torch.zeros(1), "lm_head.weight": torch.zeros(1)}, folder / "p2.safetensors")


def _pipe(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
LONG = "x" * 300 + ".safetensors"
BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "nothing": (_only(""), ["no .safetensors file", "name the folder"]),
    "one folder too high": (_only("sub/model.safetensors"), ["no .safetensors file", "did you mean", "sub?"]),
    "pickle": (_only("pytorch_model.bin", b"\x80\x02"), ["pytorch_model.bin", "save_pretrained"]),
    "pickled file": (_write(MODEL, pickle.dumps({"a": 1})), [MODEL, "is a pickle", "save_pretrained"]),
    "zipped pickle": (_write(MODEL, b"PK\x03\x04" + b"\0" * 99), [MODEL, "is a pickle"]),
    "short pickle": (_write(MODEL, b"\x80\x02\x00\x00\x00\x00\x00\x00junk"), [MODEL, "is a pickle"]),
    "Git LFS pointer": (
        _write(MODEL, b"version https://git-lfs.github.com/spec/v1\n"),
        [MODEL, "git lfs pull"],
    ),
    "web page": (_write(MODEL, b"<!DOCTYPE html><html>"), [MODEL, "not a safetensors file"]),
    "empty file": (_write(MODEL, b""), [MODEL, "0 bytes"]),
    "seven bytes": (_write(MODEL, b"1234567"), [MODEL, "7 bytes"]),
    "header of 2^63 bytes": (_write(MODEL, b"\0" * 7 + b"\x80{}"), [MODEL, "not a safetensors file"]),
    "header longer than the file": (_write(MODEL, b"\0\1" + b"\0" * 6 + b"{}"), [MODEL, "truncated", "256"]),
    "truncated": (_truncate, [MODEL, "truncated"]),
    "weights are a folder": (
        lambda f: ((f / MODEL).unlink(), (f / MODEL).mkdir()),
        [MODEL, "not a regular file"],
    ),
    "weights are a dead link": (_link(MODEL, "/nowhere/x"), [MODEL, "cannot be read"]),
    "weights are a pipe": (_pipe(MODEL), [MODEL, "not a regular file"]),
    "two files and no index": (_only("b.safetensors"), ["b.safetensors"]),
    "config is a list": (_write("config.json", b"[]"), ["config.json", "JSON object"]),
    "config is cut": (_write("config.json", b'{"a"'), ["config.json", "not valid JSON"]),
    "config is not text": (_write("config.json", b"\xff"), ["config.json", "not valid JSON"]),
    "config is deep": (
        _write("config.json", b'{"a":' * 90 + b"1" + b"}" * 90),
        ["config.json", "plain JSON"],
    ),
    "config is too deep to read": (
        _write("config.json", b'{"a":' * 99999),
        ["config.json", "not valid JSON"],
    ),
    "config is a dead link": (_link("config.json", "/nowhere/x"), ["config.json", "link to none"]),
    "config is a pipe": (_pipe("config.json"), ["config.json", "is not a file"]),
    "index is a list": (_index([]), [INDEX, "JSON object"]),
    "index without map": (_index({}), [INDEX, "weight_map"]),
    "index with an empty map": (_index({"weight_map": {}}), [INDEX, "weight_map"]),
    "index with numbers": (_index({"weight_map": {"x": 1}}), [INDEX, "weight_map"]),
    "index names a missing shard": (
        _index({"weight_map": {"x": "gone.safetensors"}}),
        [INDEX, "gone", "missing"],
    ),
    "index names a pickle": (_index({"weight_map": {"x": "x.bin"}}), [INDEX, "x.bin", "convert"]),
    "index goes up": (_index({"weight_map": {"x": "../x.safetensors"}}), [INDEX, "outside its folder"]),
    "index goes to the root": (
        _index({"weight_map": {"x": "/x.safetensors"}}),
        [INDEX, "outside its folder"],
    ),
    "index goes down": (_index({"weight_map": {"x": "a/x.safetensors"}}), [INDEX, "outside its folder"]),
    "index names its folder": (_index({"weight_map": {"x": ".."}}), [INDEX, "outside its folder"]),
    "index names no name": (_index({"weight_map": {"x": ""}}), [INDEX, "outside its folder"]),
    "index has a zero byte": (_index({"weight_map": {"x": "a\0.safetensors"}}), [INDEX, "missing"]),
    "index names too long a name": (_index({"weight_map": {"x": LONG}}), [INDEX, "missing"]),
    "index names half a surrogate": (_index({"weight_map": {"x": "\ud800.safetensors"}}), [INDEX, "missing"]),
    "index lies": (
        _index({"weight_map": {"ghost": "part.safetensors"}}),
        [INDEX, "'ghost'", "does not hold it"],
    ),
    "a tensor in two shards": (
        _both,
        ["'lm_head.weight'", "is in both", "p2.safetensors", "part.safetensors"],
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_broken_folders_are_refused(case: str, tmp_path: Path) -> None:
    spoil, words = BAD_FOLDERS[case]
    folder = write_folder(tmp_path / "model", tensors(1))
    spoil(folder)
    text = refusal(folder)
    for word in [str(folder), *words]:
        assert word in text, text


def test_several_weight_files_without_index_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("x", "y"):
        save_file(tensors(1), folder / f"{name}.safetensors")
    text = refusal(folder)
    assert "x.safetensors, y.safetensors" in text and "no index" in text


@pytest.mark.parametrize(
    "name", ["nowhere", "./a/b/c", "", "x" * 300, "/y" * 3000, "~nobody-at-all/x", "a\nb", "a//b"]
)
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_header_bombs_cost_little(tmp_path: Path) -> None:
    many = ",".join(f'"{i}":1' for i in range(100_000))
    cyclic = '"x":{"dtype":"F32","shape":[' + ",".join(["1"] * 300_000) + '],"data_offsets":[0,4]}'
    for text in (f'{{{many},"99999":1}}', f"{{{cyclic}}}"):
        started = time.process_time()
        assert refusal(write_raw(tmp_path / "model.safetensors", text.encode(), b"1234"))
        assert time.process_time() - started < 5


# Files that change


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", {"first": torch.zeros(10), "second": torch.zeros(10)})
    model = open_checkpoint(folder)
    buffer = np.empty(40, dtype=np.uint8)
    model.read(model.tensors["first"], 0, 40, buffer)
    os.truncate(folder / MODEL, (folder / MODEL).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ended inside tensor 'second'"):
        model.read(model.tensors["second"], 0, 40, buffer)
    model.close()


def test_a_file_replaced_after_its_header_was_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", tensors(1))
    model = open_checkpoint(folder)
    save_file(tensors(2), folder / "new")
    os.replace(folder / "new", folder / MODEL)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has changed"):
        read_all(model)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    paths = write_models(tmp_path, 2)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(
        CheckpointError, match=r"m\d/model.safetensors: tensor '.*' cannot be read: Input/output"
    ):
        merge_folders(paths, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["m0", "m1"]


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the system's refusal, since a test may run as root, which is refused nothing."""

    def fail(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    folder = write_folder(tmp_path / "a", tensors(1))
    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(CheckpointError, match=r"a/model\.safetensors: cannot be read: Permission denied"):
        open_checkpoint(folder)


# The Hub's cache


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub fills it: two revisions of org/model; the tests' process is offline."""
    cache = tmp_path / "cache"
    write_hub(cache, "org/model", {"b" * 40: tensors(1), "a" * 40: tensors(0)})
    point_hub(cache, "org/model", "v2", "b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    return cache


@pytest.mark.parametrize(("name", "seed"), [("org/model", 0), ("org/model@main", 0), ("org/model@v2", 1)])
def test_hub_ids_are_found_in_the_cache(hub: Path, name: str, seed: int) -> None:
    model = open_checkpoint(name)
    assert (model.label, read_all(model)) == (name, as_bytes(tensors(seed)))


def test_hub_ids_merge_and_are_named_in_the_card(hub: Path, tmp_path: Path) -> None:
    merged = merge_folders(["org/model", "org/model@v2"], tmp_path / "out")
    expected = merge_states([tensors(0), tensors(1)])
    for name, tensor in expected.items():
        assert_same_bits(merged[name], tensor, name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- org/model\nlibrary_name: transformers\n" in card.split("---")[1]


@pytest.mark.parametrize("name", ["org/other", "org/model@v3", "org/a..b", "org/model--x"])
def test_hub_ids_that_are_not_there(hub: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(name)
    text = str(caught.value)
    assert text.startswith(f"{name}: no such folder") and "\n" not in text


# Memory

_MEMORY = """
import resource, sys
from merge_models.merge import merge
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
small, large, out = sys.argv[1:]
merge([small, small], out=out + "/out1", threads=2)
before = peak()
merge([large, large], out=out + "/out2", threads=2)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Two parents of 192 MB each, in holes on disk, merge in a few MB more than two of 6 MB."""
    for name, rows in (("small", 1 << 10), ("large", 1 << 15)):
        header = {"x": entry("F16", [rows, 3072], 0, rows * 6144)}
        file = write_raw(tmp_path / name / MODEL, header)
        os.truncate(file, file.stat().st_size + rows * 6144)
    arguments = [str(tmp_path / "small"), str(tmp_path / "large"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24
