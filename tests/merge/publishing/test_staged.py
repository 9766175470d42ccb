"""Merges that are killed, cut off from power, out of space, or in each other's way: what is left, and what
comes of it. The campaigns behind are ``python -m benchmarks.kill`` and ``python -m benchmarks.power``."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from merge_models.merge import CheckpointError, MergeError, MergeResult, NonFiniteError, merge
from merge_models.merge.checkpoint.digest import FAST, PIECE, STRONG, TensorDigest, digest_range, kind_of
from merge_models.merge.checkpoint.outputs import journal as journals
from merge_models.merge.checkpoint.outputs.journal import Journal
from merge_models.merge.cli import main
from merge_models.merge.publishing.verify import verify
from merge_models.merge.strategies import Linear
from tests.crash import power
from tests.crash.families import FAMILIES
from tests.helpers import ROOT, kept, listing, read_folder, tensors, write_folder, write_models

NAMES = {f"layer.{number:02}": (64,) for number in range(20)}


def run(*models: object, out: Path, **options: Any) -> MergeResult:
    result = merge([str(model) for model in models], out=out, **options)
    assert isinstance(result, MergeResult)
    return result


class Stop(Exception):
    """Stops a merge in its middle."""


def stop_after(blocks: int) -> Callable[[int], None]:
    """A progress callback that stops the merge after so many blocks."""
    seen = []

    def advance(nbytes: int) -> None:
        seen.extend([nbytes] if nbytes else [])
        if len(seen) > blocks:
            raise Stop

    return advance


def stopped(place: Path, blocks: int = 8, **options: Any) -> tuple[list[Path], Path]:
    """A merge of two models, stopped in its middle; the models and the target."""
    models = [write_folder(place / f"m{seed}", tensors(seed, shapes=NAMES)) for seed in range(2)]
    with pytest.raises(Stop):
        run(*models, out=place / "out", threads=1, progress=stop_after(blocks), **options)
    assert kept(place) == [".out.merging"] and not (place / "out").exists()
    return models, place / "out"


def assert_as_undisturbed(models: list[Path], out: Path, **options: Any) -> None:
    run(*models, out=out.with_name("fresh"), **options)
    assert listing(out) == listing(out.with_name("fresh"))
    assert not kept(out.parent)


# Going on


@pytest.mark.parametrize("threads", [1, 3])
def test_a_stopped_merge_goes_on(threads: int, tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    done: list[int] = []
    assert run(*models, out=out, threads=threads, progress=done.append).resumed == 8
    assert sum(done) == 20 * 64 * 4, "progress counts what was there"
    assert_as_undisturbed(models, out)


def test_restart_begins_anew(tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    assert run(*models, out=out, restart=True).resumed == 0
    assert_as_undisturbed(models, out)


def _retrain(place: Path) -> None:
    write_folder(place / "m0", tensors(9, shapes=NAMES))
    os.utime(place / "m0/model.safetensors", ns=(1, 1))


def _edit_config(place: Path) -> None:
    config = place / "m1/config.json"
    config.write_text(config.read_text().replace("llama", "llana"))


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "another strategy": (
        lambda place: None,
        {"strategy": Linear(weight=(3.0, 1.0))},
        "recipe: models has chang",
    ),
    "another dtype": (lambda place: None, {"dtype": "bfloat16"}, "recipe: dtype is new"),
    "another seed": (lambda place: None, {"seed": 5}, "recipe: seed is new"),
    "other shards": (lambda place: None, {"shard_size": 999}, "output files"),
    "an input trained on": (_retrain, {}, r"inputs: parent .*m0/model.safetensors has changed"),
    "an input's config": (_edit_config, {}, r"inputs: parent .*m1/config.json has changed"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_merge_does_not_go_on(case: str, tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    change, options, words = CHANGES[case]
    change(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=f"{words}.*begin anew with --restart"):
        run(*models, out=out, **options)
    assert listing(tmp_path) == before
    run(*models, out=out, restart=True, **options)
    assert_as_undisturbed(models, out, **options)


@pytest.mark.parametrize("changed", ["merge-models", "numerics", "kernels", "torch"])
def test_another_version_does_not_go_on(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, out = stopped(tmp_path)
    from merge_models.merge.checkpoint import manifest
    from merge_models.merge.publishing import identity

    version = identity.version
    monkeypatch.setattr(identity, "NUMERICS", 99 if changed == "numerics" else identity.NUMERICS)
    for module in (identity, manifest):
        monkeypatch.setattr(module, "version", lambda p="merge-models": "9" if p == changed else version(p))
    if changed == "kernels":
        monkeypatch.setattr(identity, "native_name", lambda: "abacus")
    with pytest.raises(CheckpointError, match=f"software: {changed} was .*, is (9|99|abacus)"):
        run(*models, out=out)


def test_bytes_that_changed_after_they_were_noted_are_made_again(tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    shard = tmp_path / ".out.merging/new/model.safetensors"
    data = bytearray(shard.read_bytes())
    written = [at for at, byte in enumerate(data) if byte and at > len(data) - 20 * 64 * 4]
    data[written[0]] ^= 1
    shard.write_bytes(data)
    assert run(*models, out=out).resumed == 7
    assert_as_undisturbed(models, out)


def test_what_does_not_belong_there_is_not_published(tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    new = tmp_path / ".out.merging/new"
    (new / "modeling_evil.py").write_text("evil()")
    (new / "folder").mkdir()
    (new / "folder/x.json").write_text("{}")
    assert run(*models, out=out).resumed == 8
    assert_as_undisturbed(models, out)


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_torn_journal_loses_its_end_only(cut: int, tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    file = tmp_path / ".out.merging/journal"
    file.write_bytes(file.read_bytes()[:-cut])
    assert run(*models, out=out).resumed == 7
    assert_as_undisturbed(models, out)


def test_a_journal_without_its_beginning_is_none(tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    file = tmp_path / ".out.merging/journal"
    file.write_bytes(b"\0" * 10 + file.read_bytes()[10:])
    assert run(*models, out=out).resumed == 0
    assert_as_undisturbed(models, out)


def test_lines_of_another_journal_do_not_count(tmp_path: Path) -> None:
    for name in ("one", "two"):
        made = Journal.create(tmp_path / name, {"recipe": name})
        made.append({"tensor": name})
        made.close()
    lines = [(tmp_path / name).read_bytes().splitlines(keepends=True) for name in ("one", "two")]
    (tmp_path / "one").write_bytes(lines[0][0] + lines[1][1] + lines[0][1])
    read = Journal.load(tmp_path / "one")
    assert read is not None and read.records == []
    read.append({"tensor": "after"})
    read.close()
    again = Journal.load(tmp_path / "one")
    assert again is not None and again.records == [{"tensor": "after"}]
    again.close()


def test_differences_are_told_in_words() -> None:
    old = {"a": {"x": 1, "y": "z" * 50, "w": 0}, "b": 1, "c": 2}
    new = {"a": {"x": 2, "y": "q" * 50}, "b": 1, "c": 3}
    assert journals.differences(old, new) == "a: x was 1, is 2, y has changed, w is gone; c"
    assert not journals.differences(old, old)


# Two writers


def test_two_merges_into_one_target(tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    refused: list[str] = []

    def intrude(nbytes: int) -> None:
        if nbytes and not refused:
            with pytest.raises(CheckpointError, match="another merge is writing it") as caught:
                run(*models, out=tmp_path / "out", restart=True)
            refused.append(str(caught.value))
            run(*models, out=tmp_path / "elsewhere")

    assert run(*models, out=tmp_path / "out", threads=1, progress=intrude).resumed == 0
    assert refused and listing(tmp_path / "out") == listing(tmp_path / "elsewhere")
    assert not kept(tmp_path)


# No space, no reading, no writing


def test_a_full_disk_stops_a_merge_that_then_goes_on(tmp_path: Path) -> None:
    """No file may grow beyond a limit, as on a disk that cannot reserve space and fills up."""
    models = [
        write_folder(tmp_path / f"m{s}", tensors(s, shapes={n: (4096,) for n in NAMES})) for s in range(2)
    ]
    script = (
        "import errno, os, resource, sys\n"
        "def no(*_): raise OSError(errno.EOPNOTSUPP, 'no')\n"
        "os.posix_fallocate, ftruncate = no, os.ftruncate\n"
        "os.ftruncate = lambda d, n: ftruncate(d, min(n, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))\n"
        "from merge_models.merge.cli import main; main()\n"
    )
    command = ["merge", *map(str, models), "-o", str(tmp_path / "out"), "--threads", "1", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "model.safetensors: tensor 'layer." in done.stderr and "File too large; make room" in done.stderr
    assert "of 20 tensors are finished and kept" in done.stderr
    command[command.index("-q")] = "-v"
    assert "kept from an earlier run, and checked: " in CliRunner().invoke(main, command).output
    command[command.index("-o") + 1] = str(tmp_path / "fresh")
    CliRunner().invoke(main, command)
    assert listing(tmp_path / "out") == listing(tmp_path / "fresh") and not kept(tmp_path)


def test_space_that_is_reserved_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, out = stopped(tmp_path)
    monkeypatch.setattr("merge_models.merge.publishing.writing.free_space", lambda target: 1000)
    assert run(*models, out=out).resumed == 8
    with pytest.raises(MergeError, match="needs .* of disk"):
        run(*models, out=tmp_path / "other")


def test_a_read_error_names_file_and_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = write_models(tmp_path, 2)

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(
        CheckpointError, match=r"m\d/model.safetensors: tensor '.*' cannot be read: Input/output"
    ):
        run(*models, out=tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match="no permission to write"):
        run(*models, out=tmp_path / "closed/out")


def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, mkdir = write_models(tmp_path, 2), Path.mkdir

    def closed(self: Path, *rest: Any, **options: Any) -> None:
        if ".merging" in self.name:
            raise OSError(errno.EROFS, "Read-only file system")
        mkdir(self, *rest, **options)

    monkeypatch.setattr(Path, "mkdir", closed)
    with pytest.raises(CheckpointError, match="out: cannot be made: Read-only file system; choose another"):
        run(*models, out=tmp_path / "deep/out")
    assert sorted(os.listdir(tmp_path)) == ["m0", "m1"]


def test_bad_values_are_let_through_where_it_stopped(tmp_path: Path) -> None:
    shapes = {f"layer.{n:02}": (8,) for n in range(9)}
    bad = tensors(1, shapes=shapes)
    bad["layer.07"][0] = float("nan")
    models = [write_folder(tmp_path / "m0", tensors(0, shapes=shapes)), write_folder(tmp_path / "m1", bad)]
    with pytest.raises(NonFiniteError, match=r"'layer.07' holds NaN.*7 of 9 tensors are finished"):
        run(*models, out=tmp_path / "out", threads=1)
    assert run(*models, out=tmp_path / "out", on_nonfinite="keep").resumed == 7
    assert torch.isnan(read_folder(tmp_path / "out")["layer.07"]).sum() == 1


def test_the_command_line_restarts(tmp_path: Path) -> None:
    models, out = stopped(tmp_path)
    command = ["merge", *map(str, models), "-o", str(out)]
    refused = CliRunner().invoke(main, [*command, "--weights", "1,2"])
    assert refused.exit_code == 2 and "begin anew with --restart" in refused.output
    assert CliRunner().invoke(main, [*command, "--weights", "1,2", "--restart"]).exit_code == 0


# Kills and crashes


def test_killed_merges_go_on() -> None:
    """40 kills over all families, in a process that has no threads to fork."""
    script = "import sys; from tests.crash.kill import quick; quick(int(sys.argv[1]))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert sum(left.values()) >= 40 and left["some tensors finished"] >= 5, left


def test_merges_survive_power_cuts(tmp_path: Path) -> None:
    rng, outages = random.Random(5), 0
    chosen = [f for f in FAMILIES if f.name in ("linear", "ties of the model", "slices", "two recipes")]
    power.prepare(tmp_path, chosen)
    seen: dict[str, set[bytes]] = {family.name: set() for family in chosen}
    for case in range(12):
        family = chosen[case % len(chosen)]
        outages += power.outage(family, tmp_path, rng, seen[family.name])
    assert outages >= 12


# Digests


def test_a_merge_goes_on_with_other_kinds_of_digests(tmp_path: Path) -> None:
    """All digests are then of the kinds asked for last, and fit."""
    models, out = stopped(tmp_path, output_digests="fast")
    assert run(*models, out=out, input_digests="strong").resumed == 8
    record = json.loads((out / "merge_manifest.json").read_text())
    read = [d for given in record["inputs"] for file in given["files"] for d in file["read"].values()]
    kinds = {kind_of(digest) for digest in (*record["digests"]["tensors"].values(), *read)}
    assert kinds == {STRONG} and not verify(out, inputs=True).problems
    assert_as_undisturbed(models, out, input_digests="strong")


@pytest.mark.parametrize("kind", [STRONG, FAST])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 77])
def test_digests_are_what_the_documentation_says(kind: str, size: int, tmp_path: Path) -> None:
    """The definition, written down again; and any cutting into blocks, in any order, gives the same."""
    from blake3 import blake3
    from xxhash import xxh3_128

    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    plain = {STRONG: blake3, FAST: xxh3_128}[kind]
    pieces = [data[at : at + 2**18].tobytes() for at in range(0, size, 2**18)]
    expected = f"{kind}:{plain(b''.join(plain(piece).digest() for piece in pieces)).hexdigest()}"
    for seed in range(5):
        rng = random.Random(seed)
        cuts = sorted({0, size, *(rng.randint(0, size) for _ in range(rng.choice((0, 3, 40))))})
        blocks = list(zip(cuts, cuts[1:], strict=False))
        rng.shuffle(blocks)
        digest = TensorDigest(size, kind)
        for number, (start, stop) in enumerate(blocks):
            assert digest.text() is None or number == 0 == size
            digest.add(start, data[start:stop])
        assert digest.text() == expected
    (tmp_path / "x").write_bytes(b"abc" + data.tobytes())
    with open(tmp_path / "x", "rb") as stream:
        assert digest_range(stream.fileno(), 3, size, kind) == expected
        assert digest_range(stream.fileno(), 4, size, kind) is None or size == 0
