"""What is written: layout, staging, small files, config, card, manifest; and what a failure leaves behind."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import random
import re
import shutil
import struct
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from merge_models.merge import (
    CheckpointError,
    MergeError,
    MergeResult,
    NonFiniteError,
    RecipeError,
    merge,
    prepare,
    run_recipe,
)
from merge_models.merge.checkpoint import Staging, open_checkpoint, plan_layout
from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.checkpoint.outputs import publish
from merge_models.merge.checkpoint.outputs.layout import OutputTensor
from merge_models.merge.publishing.verify import verify
from merge_models.merge.recipes.recipe import parse_recipe, recipe_of
from merge_models.merge.sizes import parse_size, shown_size
from merge_models.merge.strategies import Linear
from tests.helpers import (
    CONFIG,
    assert_same_bits,
    kept,
    listing,
    listing_without_kept,
    merge_folders,
    read_folder,
    tensors,
    write_folder,
    write_models,
)

MANIFEST = "merge_manifest.json"


def merge_result(parents: list[str], out: Path, **options: Any) -> MergeResult:
    result = merge(parents, out=out, **options)
    assert isinstance(result, MergeResult)
    return result


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """A file's header and where its data start, read byte by byte."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


# Layout


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9), ("5gb", 5 * 10**9), ("1.5 MiB", 1_572_864), ("2_000", 2000), (" 7 B ", 7),
        ("3K", 3000), ("1TB", 10**12), ("1TiB", 1 << 40), (12, 12), ("0.5KB", 500),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (713, "713 B"), (999, "999 B"), (1000, "1.00 KB"), (1005, "1.01 KB"), (12_345, "12.3 KB"),
        (999_499, "999 KB"), (999_500, "1.00 MB"), (59_000_000, "59.0 MB"), (2_200_010_000, "2.20 GB"),
        (10**14, "100 TB"), (12 * 10**14, "1200 TB"),
    ],
)  # fmt: skip
def test_sizes_are_told_in_the_unit_that_fits(size: int, text: str) -> None:
    assert shown_size(size) == text


def test_told_sizes_are_enough_or_there() -> None:
    sizes = random.Random(0)
    for size in (int(10 ** sizes.uniform(0, 15)) for _ in range(2000)):
        up, down = (parse_size(shown_size(size, rounding)) for rounding in ("up", "down"))
        assert size * 0.99 < down <= size <= up < size * 1.01, size


@pytest.mark.parametrize(
    "text", ["", "_", "0", "-1", "5XB", "1e9", "nan", "9" * 400 + "GB", "0.1", "GB", "1.GB", "5 G B", "٣"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="write 5GB"):
        parse_size(text)


@pytest.mark.parametrize("shard_size", [1, 300, 500, 1000, 10**9])
def test_shards_are_as_transformers_names_them(shard_size: int, tmp_path: Path) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    merged = merge_folders(parents, out, shard_size=shard_size)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    expected = merge_folders(parents, tmp_path / "whole")
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(merged[name], tensor, name)
    sizes = [sum(t.nbytes for t in read_folder_of(out / file).values()) for file in files]
    for file, size in zip(files, sizes, strict=True):
        assert size <= shard_size or len(read_folder_of(out / file)) == 1
        assert header_of(out / file)[0]["__metadata__"]["format"] == "pt"
    if len(files) == 1:
        assert files == ["model.safetensors"] and not list(out.glob("*.index.json"))
        return
    assert files == [f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: f for f in files for name in read_folder_of(out / f)}


def read_folder_of(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def test_no_shard_is_larger_than_it_needs_to_be() -> None:
    """Neighbours that would fit together are not dealt out apart, and order is kept."""
    sizes = [3, 5, 2, 9, 1, 1, 1, 7]
    out = [OutputTensor(str(i), BY_CODE["U8"], (size,)) for i, size in enumerate(sizes)]
    groups = [[t.nbytes for t in shard.tensors] for shard in plan_layout(out, 10).shards]
    assert groups == [[3, 5, 2], [9, 1], [1, 1, 7]]


def test_tensors_are_aligned_and_leave_no_holes(tmp_path: Path) -> None:
    state = {f"{n}.{code}": torch.ones(n + 1).to(getattr(torch, dtype.torch_name))
             for n in range(3) for code, dtype in BY_CODE.items()}  # fmt: skip
    write_folder(tmp_path / "a", state)
    merge_folders([tmp_path / "a"], tmp_path / "out")
    header, start = header_of(tmp_path / "out" / "model.safetensors")
    assert start % 8 == 0 and header.pop("__metadata__")
    position = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"]
        assert begin == position and begin % BY_CODE[entry["dtype"]].size == 0
        position = end
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == start + position


def test_names_from_all_alphabets_survive(tmp_path: Path) -> None:
    state = {"слой.0": torch.ones(2), "層\t\n\"'\\": torch.ones(1), "": torch.zeros(1), "🙂": torch.ones(3)}
    write_folder(tmp_path / "a", state)
    assert merge_folders([tmp_path / "a"], tmp_path / "out", shard_size=4).keys() == state.keys()


def test_metadata_of_shared_tensors_is_kept(tmp_path: Path) -> None:
    """safetensors notes there which of several names a tensor was stored under."""
    state = {"a": torch.ones(2), "c": torch.ones(2)}
    other = {**state, "b": torch.zeros(2)}
    write_folder(tmp_path / "x", state, metadata={"b": "a", "note": "mine"})
    write_folder(tmp_path / "y", other)
    merge_folders([tmp_path / "x", tmp_path / "x"], tmp_path / "out")
    metadata = foreign_metadata(tmp_path / "out")
    assert metadata == {"format": "pt", "b": "a", "note": "mine"}
    merged = merge_folders([tmp_path / "x", tmp_path / "y"], tmp_path / "both")
    assert merged["b"].tolist() == [0.5, 0.5]
    assert foreign_metadata(tmp_path / "both") == {"format": "pt", "note": "mine"}


def foreign_metadata(folder: Path) -> dict[str, str]:
    """The header's metadata but for what merges themselves add."""
    metadata = header_of(folder / "model.safetensors")[0]["__metadata__"]
    return {key: value for key, value in metadata.items() if not key.startswith("merge_models.")}


# Targets


def test_an_empty_target_is_taken_and_missing_parents_are_made(tmp_path: Path) -> None:
    parents = write_models(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "p" / "q" / "r", tmp_path / ("long" * 60)):
        merge_folders(parents, out)
        assert sorted(f.name for f in out.iterdir()) == [
            "README.md", "config.json", MANIFEST, "model.safetensors",
        ]  # fmt: skip
        (tmp_path / "plain").mkdir(exist_ok=True)
        assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


def _file(out: Path) -> None:
    out.write_text("mine")


def _full(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("mine")


def _model(out: Path) -> None:
    write_folder(out, tensors(9))


def _with(name: str) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        write_folder(out, tensors(9), files={name: "mine"})

    return make


def _link(out: Path) -> None:
    write_folder(out.parent / "elsewhere", tensors(9))
    out.symlink_to(out.parent / "elsewhere")


REFUSED: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "a file": (_file, False, "is no folder"),
    "a file, overwriting": (_file, True, "is no folder"),
    "a link": (_link, True, "is no folder"),
    "a dead link": (lambda out: out.symlink_to("/nowhere/x"), True, "is no folder"),
    "a folder of something else": (_full, False, "--overwrite, overwrite=True"),
    "a folder of something else, overwriting": (_full, True, "holds no checkpoint"),
    "a checkpoint": (_model, False, "--overwrite, overwrite=True"),
    "a run with its optimizer": (_with("optimizer.pt"), True, "optimizer.pt"),
    "a run with its checkpoints": (_with("checkpoint-5/model.safetensors"), True, "checkpoint-5"),
    "a checkpoint in version control": (_with(".git/HEAD"), True, ".git/HEAD"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_targets_that_would_lose_something_are_refused(case: str, tmp_path: Path) -> None:
    make, overwrite, words = REFUSED[case]
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    make(out)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=f"output .*out .*{words}"):
        merge(parents, out=out, overwrite=overwrite)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["m0", "m0/out", "m0/deep/out", ".", "link/out", "m1/../m0/out"])
def test_an_output_may_not_touch_an_input(place: str, tmp_path: Path) -> None:
    parents = write_models(tmp_path, 2)
    (tmp_path / "link").symlink_to(tmp_path / "m1")
    before = listing(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="overlap; choose another output"):
            merge(parents, out=tmp_path / place, overwrite=overwrite)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/out", "is no folder"),
        ("x" * 300, "too long"),
        (".", "current folder"),
        ("..", "current folder"),
        ("", "path of a folder"),
        ("/proc/nothing/here", "takes no files|permission"),
    ],
)
def test_places_where_nothing_can_be_made(
    out: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = write_models(tmp_path / "models", 2)
    here = tmp_path / "work" / "empty"
    here.mkdir(parents=True)
    (here / "file").touch()
    monkeypatch.chdir(here)
    before = listing(tmp_path)
    with pytest.raises(MergeError, match=words):
        merge(parents, out=out)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("reason", ["mount", "permission"])
def test_places_that_only_the_system_can_refuse(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    if reason == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(CheckpointError, match=f"output .*out.*{reason}.*(name|choose)"):
        merge(parents, out=out)
    assert sorted(os.listdir(tmp_path)) == ["m0", "m1"]


def test_overwrite_replaces_all_of_the_old_checkpoint(tmp_path: Path) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    merge_folders(parents, out, shard_size=400)
    (out / "stale.json").write_text("{}")
    merge_folders(parents, out, overwrite=True)
    merge_folders(parents, tmp_path / "fresh")
    assert listing(out) == listing(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "m0", "m1", "out"]


def test_a_target_that_appears_meanwhile_is_not_lost(tmp_path: Path) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    with pytest.raises(CheckpointError, match="cannot be published: .*; choose another output; 6 of 6"):
        merge(parents, out=out, planned=lambda prepared: _full(out))
    assert listing(out) == {"thesis.txt": b"mine"}
    assert sorted(os.listdir(tmp_path)) == [".out.merging", "m0", "m1", "out"]
    out.rename(tmp_path / "thesis")
    assert merge_result(parents, out).resumed == 6
    assert not kept(tmp_path)


# Failures


class Weird(Exception):
    """What no code of ours raises."""


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
STAGING = "merge_models.merge.checkpoint.outputs.staging"


def _raise_at(place: Callable[..., Any], word: str, error: BaseException) -> Callable[..., Any]:
    """A function that fails where one of its arguments has a word, and else does what it did."""

    def fail(*arguments: Any, **options: Any) -> Any:
        if any(word in str(argument) for argument in arguments):
            raise error
        return place(*arguments, **options)

    return fail


EIO = OSError(errno.EIO, "Input/output error")
FAILURES: dict[str, tuple[str, Callable[..., Any], BaseException, bool]] = {
    "disk fills at the start": ("os.posix_fallocate", _raise(FULL), FULL, False),
    "disk fills at the journal": ("os.write", _raise(FULL), FULL, False),
    "disk fills on the way": (f"{STAGING}.os.pwrite", _raise(FULL), FULL, False),
    "disk fills at the small files": ("os.open", _raise_at(os.open, "README.md", FULL), FULL, True),
    "a small file cannot be copied": (
        "pathlib.Path.read_bytes", _raise_at(Path.read_bytes, "tokenizer.json", EIO), EIO, True,
    ),
    "what is written cannot be synced": (f"{STAGING}.sync_tree", _raise(EIO), EIO, True),
    "interrupted": (
        "merge_models.merge.publishing.writing.Writing._write_small_files", _raise(KeyboardInterrupt()),
        KeyboardInterrupt(), True,
    ),
    "interrupted while publishing": (
        f"{STAGING}.put_in_place", _raise(KeyboardInterrupt()), KeyboardInterrupt(), True,
    ),
    "publishing refused": (
        f"{STAGING}.put_in_place", _raise(OSError(errno.EACCES, "Permission denied")),
        OSError(errno.EACCES, "Permission denied"), True,
    ),
    "a bug": ("merge_models.merge.publishing.writing.manifest", _raise(Weird()), Weird(), True),
}  # fmt: skip


@pytest.mark.parametrize("target", ["new", "standing"])
@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_merge_harms_nothing_and_goes_on(
    case: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "deep" / "out"
    write_folder(tmp_path / "m0", tensors(0), files={"tokenizer.json": "{}"})
    if target == "standing":
        write_folder(out, tensors(9))
    before = listing(tmp_path)
    place, replacement, error, keeps = FAILURES[case]
    with monkeypatch.context() as patch:
        patch.setattr(place, replacement)
        wanted = CheckpointError if isinstance(error, OSError) else type(error)
        with pytest.raises(wanted) as caught:
            merge(parents, out=out, overwrite=True)
    assert listing_without_kept(tmp_path) == before | ({"deep": b""} if keeps else {})
    assert bool(kept(tmp_path)) == keeps
    assert keeps == ("6 of 6 tensors are finished and kept" in str(caught.value)) or case == "a bug"
    if isinstance(error, OSError):
        assert str(error.strerror) in str(caught.value) and "\n" not in str(caught.value)
    assert merge_result(parents, out, overwrite=True).resumed == (6 if keeps else 0)
    merge(parents, out=tmp_path / "fresh")
    assert listing(out) == listing(tmp_path / "fresh") and not kept(tmp_path)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_interrupt_between_the_renames_keeps_one_whole_target(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old target out of the way, new one into its place: whenever it stops, one of them stands."""
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    write_folder(out, tensors(9))
    old, rename, calls = listing(out), os.rename, []

    def interrupted(source: Any, target: Any) -> None:
        rename(source, target)
        calls.append(source)
        if len(calls) == fails_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(publish, "exchange", lambda left, right: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(parents, out=out, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [*([".out.merging"] if fails_at == 1 else []), "m0", "m1", "out"]
    assert (listing(out) == old) == (fails_at == 1)
    assert (MANIFEST in listing(out)) == (fails_at == 2)


def test_an_interrupt_right_after_the_exchange_keeps_the_new_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    write_folder(out, tensors(9), files={"old.json": "{}"})
    place = publish.put_in_place

    def interrupted(*arguments: Any) -> None:
        place(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{STAGING}.put_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(parents, out=out, overwrite=True)
    monkeypatch.undo()
    merge(parents, out=tmp_path / "fresh")
    assert listing(out) == listing(tmp_path / "fresh") and not kept(tmp_path)


def test_a_disk_that_is_too_small_is_known_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = write_models(tmp_path, 2)
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MergeError, match=r"output .*out: needs .* of disk, .* is free; make room"):
        merge(parents, out=tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["m0", "m1"]


def test_file_systems_that_cannot_reserve_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = write_models(tmp_path, 2)
    expected = merge_folders(parents, tmp_path / "first")
    monkeypatch.setattr(os, "posix_fallocate", _raise(OSError(errno.EOPNOTSUPP, "not supported")))
    for name, tensor in merge_folders(parents, tmp_path / "second").items():
        assert_same_bits(tensor, expected[name], name)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failing_worker_is_heard(threads: int, tmp_path: Path) -> None:
    parents, running = write_models(tmp_path, 2), threading.active_count()
    with pytest.raises(Weird):
        merge(parents, out=tmp_path / "out", threads=threads, progress=_raise(Weird()))
    assert sorted(os.listdir(tmp_path)) == ["m0", "m1"]
    assert threading.active_count() == running


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_stop_a_merge_of_folders(value: float, tmp_path: Path) -> None:
    parents, bad = write_models(tmp_path, 2), tensors(5)
    bad["lm_head.weight"][3, 3] = value
    parents.append(str(write_folder(tmp_path / "bad", bad)))
    with pytest.raises(NonFiniteError, match=r"/bad: tensor 'lm_head\.weight' holds NaN or Inf; repair it"):
        merge(parents, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = merge_folders(parents, tmp_path / "out", on_nonfinite="keep")
    bad_places = ~torch.isfinite(kept["lm_head.weight"])
    assert bad_places.sum() == 1 and bool(bad_places[3, 3])


def test_results_that_do_not_fit_are_named(tmp_path: Path) -> None:
    parents = [write_folder(tmp_path / n, {"x": torch.full((4,), 6e4)}) for n in "ab"]
    with pytest.raises(NonFiniteError, match=r"'x'.*do not fit float16; choose a wider dtype"):
        merge_folders(parents, tmp_path / "out", Linear(weight=1.0, normalize=False), dtype="float16")


def test_descriptors_are_all_closed(tmp_path: Path) -> None:
    parents, before = write_models(tmp_path, 2), len(os.listdir("/dev/fd"))
    merge(parents, out=tmp_path / "out", shard_size=300)
    with pytest.raises(Weird):
        merge(parents, out=tmp_path / "out2", progress=_raise(Weird()))
    assert len(os.listdir("/dev/fd")) == before


def test_staging_takes_blocks_in_any_order(tmp_path: Path) -> None:
    layout = plan_layout([OutputTensor("x", BY_CODE["I32"], (100,))])
    staging = Staging(tmp_path / "out", layout)
    assert staging.begin({}) == []
    staging.allocate()
    values = torch.arange(100, dtype=torch.int32)
    for start in (60, 0, 80, 20, 40):
        staging.write("x", start * 4, values[start : start + 20].view(torch.uint8).numpy())
    staging.publish()
    assert_same_bits(read_folder(tmp_path / "out")["x"], values)


# Small files

SMALL = {
    "generation_config.json": '{"do_sample": true}',
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "vocab.txt": "a\nb",
    "merges.txt": "",
    "chat_template.jinja": "{{ messages }}",
    "tokenizer.model": "binary",
    "LICENSE": "Apache",
    "1_Pooling/config.json": '{"pooling_mode": "mean"}',
    "modules.json": "[]",
}
LEFT = {
    "optimizer.pt": "", "training_args.bin": "", "trainer_state.json": "{}", "modeling_x.py": "evil()",
    "README.md": "# theirs", "runs/events": "", "checkpoint-1/config.json": "{}", ".cache/x.json": "{}",
    "2_Dense/model.safetensors": "", "merge_manifest.json": "{}", "notes.docx": "",
    "adapter_config.json": "{}",
}  # fmt: skip


def test_small_files_come_from_one_donor(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", tensors(1), files={**SMALL, **LEFT})
    write_folder(tmp_path / "b", tensors(2), files={"tokenizer.json": '{"other": 1}', "extra.json": "{}"})
    merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    written = listing(tmp_path / "out")
    folders = {"1_Pooling": b""}
    made = {"config.json", "README.md", MANIFEST, "model.safetensors"}
    small = {name: text.encode() for name, text in SMALL.items()}
    assert {name: text for name, text in written.items() if name not in made} == {**small, **folders}
    assert b"theirs" not in written["README.md"] and written[MANIFEST] != b"{}"


MODULES = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Dense"}])


def _sentence_encoder(folder: Path, seed: int, **files: str) -> Path:
    """As sentence-transformers saves one: a transformer, and a dense layer with weights of its own."""
    dense = {"2_Dense/config.json": '{"out_features": 2}', "3_Dense/pytorch_model.bin": "pickle"}
    write_folder(folder, tensors(seed), files={"modules.json": MODULES, **dense, **files})
    save_file({"linear.weight": torch.full((2, 8), float(seed))}, folder / "2_Dense/model.safetensors")
    return folder


def test_weights_of_sentence_modules_come_with_the_list_that_names_them(tmp_path: Path) -> None:
    encoders = [_sentence_encoder(tmp_path / name, seed) for seed, name in enumerate(("a", "b", "c"))]
    (encoders[2] / "2_Dense/model.safetensors").write_bytes(
        (encoders[0] / "2_Dense/model.safetensors").read_bytes()
    )
    prepared = prepare(recipe_of(Linear(), encoders))
    prepared.close()
    assert "2_Dense/model.safetensors" in prepared.sidecars.copied
    assert "3_Dense/pytorch_model.bin" in dict(prepared.sidecars.left)
    first, second = prepared.plan.remarks
    assert first.startswith("2_Dense/model.safetensors is not merged") and first.endswith(f"in {encoders[1]}")
    assert "3_Dense/pytorch_model.bin" in second and "save that model again as safetensors" in second
    merge_folders(encoders, tmp_path / "out")
    made = (tmp_path / "out/2_Dense/model.safetensors").read_bytes()
    assert made == (encoders[0] / "2_Dense/model.safetensors").read_bytes()
    assert not verify(tmp_path / "out").problems
    (tmp_path / "out/2_Dense/model.safetensors").write_bytes(b"")
    assert "2_Dense/model.safetensors" in verify(tmp_path / "out").problems[0]
    merge_folders(encoders, tmp_path / "out", overwrite=True)  # no stranger there
    same = prepare(recipe_of(Linear(), encoders[::2]))
    same.close()
    assert not [remark for remark in same.plan.remarks if "2_Dense" in remark]


def test_sentence_modules_stay_in_their_folder(tmp_path: Path) -> None:
    """A list of modules is a stranger's: it names no file elsewhere, and no link out is followed."""
    outside = write_folder(tmp_path / "outside", tensors(7))
    names = ["../outside", str(outside), "2_Dense/..", "", ".", "..", 3, None]
    paths = json.dumps([{"path": name} for name in names] + ["x", []])
    folder = _sentence_encoder(tmp_path / "a", 1, **{"modules.json": paths})
    merge_folders([folder], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["2_Dense"]
    assert listing(tmp_path / "out/2_Dense").keys() == {"config.json"}
    (folder / "modules.json").write_text(MODULES)
    (folder / "2_Dense/model.safetensors").unlink()
    (folder / "2_Dense/model.safetensors").symlink_to(outside / "model.safetensors")
    with pytest.raises(CheckpointError, match="which is no part of the model"):
        merge_folders([folder], tmp_path / "other")
    (folder / "modules.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"modules\.json: is not valid JSON"):
        merge_folders([folder], tmp_path / "other")


def test_weights_of_sentence_modules_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["allow_patterns"], options["ignore_patterns"]))
        return str(tmp_path / "a")

    _sentence_encoder(tmp_path / "a", 1)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    open_checkpoint("org/encoder")
    assert [name for name, _, _ in asked] == ["org/encoder", "org/encoder"]
    assert "2_Dense/model.safetensors" in asked[1][1] and asked[1][2] == []


@pytest.mark.parametrize("with_base", [False, True])
def test_the_base_donates_where_there_is_one(with_base: bool, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "first", "second")):
        write_folder(tmp_path / name, tensors(seed), config={**CONFIG, "from": name}, files={"a.json": name})
    for order in (["first", "second"], ["second", "first"]):
        out = tmp_path / "-".join(order)
        base = tmp_path / "base" if with_base else None
        merge([tmp_path / name for name in order], Linear(), base=base, out=out)
        donor = "base" if with_base else order[0]
        assert json.loads((out / "config.json").read_text())["from"] == donor
        assert (out / "a.json").read_text() == donor


def test_links_that_lead_nowhere_are_left(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", tensors(1), files={"tokenizer.json": "{}"})
    (folder / "dead.json").symlink_to("/nowhere/x")
    (folder / "loop.json").symlink_to("loop.json")
    os.mkfifo(folder / "pipe.json")
    merge_folders([folder], tmp_path / "out")
    assert sorted(f.name for f in (tmp_path / "out").glob("*.json")) == [
        "config.json", MANIFEST, "tokenizer.json",
    ]  # fmt: skip


def test_a_small_file_that_may_not_be_read_is_known_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "a", tensors(1), files={"tokenizer.json": "{}"})
    given = open

    def refuse(file: Any, *rest: Any, **options: Any) -> Any:
        if str(file).endswith("tokenizer.json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return given(file, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(
        CheckpointError, match=r"a/tokenizer\.json: cannot be read: Permission denied; allow it"
    ):
        prepare(recipe_of(Linear(), [folder]))


# Config, card, manifest


@pytest.mark.parametrize(
    ("before", "dtype", "after"),
    [
        ({"torch_dtype": "float32"}, "bf16", {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, "bf16", {"dtype": "bfloat16"}),
        (
            {"dtype": "float16", "torch_dtype": "float16"},
            None,
            {"dtype": "float32", "torch_dtype": "float32"},
        ),
        ({}, "float16", {"torch_dtype": "float16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32", "x": 1}, "vision_config": {"y": 2}},
            "bf16",
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}, "vision_config": {"y": 2}},
        ),
        ({"dtype": {"odd": 1}, "é": "\ud800", "n": [None, 1e400]}, None, {"dtype": "float32", "é": "\ud800"}),
    ],
)
def test_config_says_what_was_written(
    before: dict[str, Any], dtype: str | None, after: dict[str, Any], tmp_path: Path
) -> None:
    paths = [write_folder(tmp_path / n, tensors(1), config={"model_type": "llama", **before}) for n in "ab"]
    merged = merge_folders(paths, tmp_path / "out", dtype=dtype)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in after} == after and written["model_type"] == "llama"
    assert {str(t.dtype) for t in merged.values()} == {
        f"torch.{after.get('dtype', after.get('torch_dtype'))}"
    }


def test_dtype_of_the_majority_is_the_config_s(tmp_path: Path) -> None:
    state = {
        **tensors(1, torch.bfloat16),
        "scale": torch.ones(3),
        "steps": torch.ones(9999, dtype=torch.int64),
    }
    merge_folders([write_folder(tmp_path / "a", state)], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_card_names_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents, out = write_models(tmp_path, 2), tmp_path / "out"
    merge_folders(parents, out, Linear(weight=(0.75, 0.25)))
    card = (out / "README.md").read_text()
    assert front_matter(card) == {"library_name": "transformers", "tags": ["merge", "merge-models"]}
    assert all(f"`{Path(parent).name}`" in card for parent in parents) and str(tmp_path) not in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    again = tmp_path / "recipe.yml"
    again.write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)  # the card has the models' names, not their places
    run_recipe(again, tmp_path / "again")
    assert listing(tmp_path / "again").keys() == listing(out).keys()
    for name, data in listing(out).items():
        if name != MANIFEST:
            assert (tmp_path / "again" / name).read_bytes() == data, name


CARDS = {
    "slerp": ("", ["m0", "m1"], True),
    "nearswap": ("", ["m0", "m1"], True),
    "arcee_fusion": ("", ["m0", "m1"], True),
    "task_arithmetic": ("", ["m1"], False),
    "linear": ("m0", ["m0", "m1"], True),
    "karcher": ("", ["m1"], False),
}


@pytest.mark.parametrize("method", CARDS)
def test_card_lists_all_that_are_mixed_in(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base too, where it is one of them."""
    listed, mixed, is_among = CARDS[method]
    write_models(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    models = [{"model": name} for name in filter(None, [listed, "m1"])]
    run_recipe(parse_recipe({"merge_method": method, "base_model": "m0", "models": models}), "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.findall(r"^- `(.*)`$", card, re.MULTILINE) == mixed
    assert ("Base model: `m0`, one of these\n" in card, "Base model: `m0`\n" in card) == (
        is_among,
        not is_among,
    )


def test_card_cannot_be_broken_by_names(tmp_path: Path) -> None:
    """A folder's name may close a code block or front matter; the card stays one card."""
    folder = write_folder(tmp_path / "```\n---\ntags: [evil]\n", tensors(1))
    merge([folder], out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card)["tags"] == ["merge", "merge-models"]
    assert card.count("```") == 2 and card.count("\n---\n") == 1


def test_manifest_records_the_merge(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", {**tensors(7), "extra": torch.ones(3), "n": torch.tensor([1])})
    paths = [write_folder(tmp_path / n, {**tensors(s), "n": torch.tensor([1])}) for s, n in enumerate("ab")]
    recipe = recipe_of(Linear(weight=(3.0, 1.0)), paths, base, "bfloat16", seed=5)
    run_recipe(recipe, tmp_path / "out")
    record = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert record["tool"]["name"] == "merge-models" and record["seed"] == 5
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["recipe"]["merge_method"] == "linear" and record["recipe"]["dtype"] == "bfloat16"
    assert [(i["role"], i["model"]) for i in record["inputs"]] == [
        ("base", str(base)), ("parent", str(paths[0])), ("parent", str(paths[1])),
    ]  # fmt: skip
    for given, path in zip(record["inputs"], [base, *paths], strict=True):
        (file,) = given["files"]
        assert file["path"] == str(path / "model.safetensors")
        assert file["bytes"] == (path / "model.safetensors").stat().st_size
        assert set(file["read"]) == (set() if path == base else {*tensors(0), "n"})
    assert record["output"]["copied"] == ["n"]
    assert record["output"]["dropped"] == [
        {"tensor": "extra", "model": str(base), "reason": "only the base has it"}
    ]
    assert record["output"]["tensors"] == len(tensors(0)) + 1


def test_time_of_the_callers_own_functions_is_no_time_of_the_merge(tmp_path: Path) -> None:
    def wait(*_: object) -> Any:
        time.sleep(0.3)
        return "fine"

    recipe = recipe_of(Linear(), write_models(tmp_path, 2))
    began = time.monotonic()
    result = run_recipe(recipe, tmp_path / "out", planned=wait, review=wait)
    assert 0 < result.seconds < time.monotonic() - began - 0.6


@pytest.mark.parametrize("name", ["merged.safetensors", "merged.bin", "merged.pt", "merged.gguf"])
def test_an_output_named_like_a_file_is_refused(tmp_path: Path, name: str) -> None:
    parents = write_models(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"a merge is written as a folder; name one, such as .*merged$"):
        merge_folders(parents, tmp_path / name)
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()  # who has a folder of that name means it
    merge_folders(parents, tmp_path / name)
    assert (tmp_path / name / "model.safetensors").is_file()


def test_an_output_whose_name_has_a_dot_is_a_folder(tmp_path: Path) -> None:
    merge_folders(write_models(tmp_path, 2), tmp_path / "model-v1.5")
    assert (tmp_path / "model-v1.5" / "model.safetensors").is_file()
