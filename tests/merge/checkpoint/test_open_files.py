"""Models of more shards than a process may open: as many as fit are open, and the results are the same."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from merge_models.merge import CheckpointError, merge
from merge_models.merge.checkpoint import open_files
from merge_models.merge.checkpoint.open_files import OpenFiles
from merge_models.merge.checkpoint.sources import stored
from merge_models.merge.strategies import Karcher, Linear
from tests.helpers import assert_same_bits, read_folder


def sharded(place: Path, shards: int, value: float) -> Path:
    """A model with one tensor in each shard."""
    place.mkdir()
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file({f"w{number}": torch.full((4, 4), value + number)}, place / file)
        places[f"w{number}"] = file
    index = {"metadata": {}, "weight_map": places}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def assert_same(left: Path, right: Path) -> None:
    states = read_folder(left), read_folder(right)
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert_same_bits(value, states[1][name], name)


def in_one_file(place: Path, shards: int, value: float) -> Path:
    place.mkdir()
    state = {f"w{number}": torch.full((4, 4), value + number) for number in range(shards)}
    save_file(state, place / "model.safetensors")
    return place


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of this kind")
@pytest.mark.parametrize(("limit", "size"), [(48, 1 << 30), (256, 1 << 30), (48, 64)])
def test_models_of_more_shards_than_the_limit_are_merged(tmp_path: Path, limit: int, size: int) -> None:
    """Also into as many shards, each of one tensor."""
    parents = [sharded(tmp_path / name, 183, value) for name, value in (("a", 0.0), ("b", 1.0), ("c", 5.0))]
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2);"
        "from merge_models.merge import merge;"
        "merge(sys.argv[4:], out=sys.argv[3], threads=3, shard_size=int(sys.argv[2]))"
    )
    command = [
        sys.executable,
        "-c",
        program,
        str(limit),
        str(size),
        str(tmp_path / "out"),
        *map(str, parents),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = [in_one_file(tmp_path / f"one-{n}", 183, value) for n, value in enumerate((0.0, 1.0, 5.0))]
    merge(whole, Linear(), out=tmp_path / "wanted")
    assert_same(tmp_path / "out", tmp_path / "wanted")


def test_files_are_opened_again_in_every_round_of_a_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = [sharded(tmp_path / name, 20, value) for name, value in (("a", 0.0), ("b", 1.0))]
    merge(parents, Karcher(per="row"), out=tmp_path / "wanted")
    most: list[int] = []
    whole = open_files._opened
    monkeypatch.setattr(open_files, "most_open", lambda: 3)
    monkeypatch.setattr(
        open_files,
        "_opened",
        lambda file, opening: (most.append(len(open_files._oldest_first)), whole(file, opening))[1],
    )
    merge(parents, Karcher(per="row"), out=tmp_path / "out", threads=2)
    assert_same(tmp_path / "out", tmp_path / "wanted")
    assert len(most) > 40 // 2 and max(most) < 3 and not open_files._oldest_first


def test_a_file_that_is_read_from_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "most_open", lambda: 1)
    for name in "abc":
        (tmp_path / name).write_text(name)
    files = OpenFiles()

    def opening(file: Path) -> int:
        return os.open(file, os.O_RDONLY)

    first, second = (files.borrow(tmp_path / name, opening) for name in "ab")
    assert os.pread(first.descriptor, 1, 0) == b"a" and os.pread(second.descriptor, 1, 0) == b"b"
    files.give_back(first)
    third = files.borrow(tmp_path / "c", opening)
    assert files.borrow_open(tmp_path / "a") is None  # closed to make room; the second is still borrowed
    assert os.pread(second.descriptor, 1, 0) == b"b" and os.pread(third.descriptor, 1, 0) == b"c"
    files.close()
    assert files.borrow_open(tmp_path / "c") is None


def test_the_limit_is_named_where_nothing_can_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = [sharded(tmp_path / name, 2, 0.0) for name in "ab"]

    def refused(self: stored.Checkpoint, file: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(stored.Checkpoint, "_open", refused)
    with pytest.raises(CheckpointError, match=r"Too many open files; raise the limit .*ulimit -n"):
        merge(parents, Linear(), out=tmp_path / "out")


@pytest.mark.parametrize("harm", ["removed", "replaced"])
def test_an_output_that_is_not_the_one_that_was_made_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    parents = [sharded(tmp_path / name, 6, value) for name, value in (("a", 0.0), ("b", 1.0))]
    monkeypatch.setattr(open_files, "most_open", lambda: 1)
    done: list[int] = []

    def progress(nbytes: int) -> None:
        done.append(nbytes)
        if len(done) == 1:
            last = sorted((tmp_path / ".out.merging" / "new").glob("*.safetensors"))[-1]
            last.rename(tmp_path / "elsewhere")  # so that its number is not given to the next file
            if harm == "replaced":
                last.write_bytes(b"another's")

    words = (
        "cannot be opened again: .*; run the merge again; "
        if harm == "removed"
        else "was replaced while it was written"
    )
    with pytest.raises(CheckpointError, match=words):
        merge(parents, Linear(), out=tmp_path / "out", shard_size=64, threads=1, progress=progress)
    assert not (tmp_path / "out").exists()


def test_shutting_waits_for_what_is_borrowed_and_opens_no_more(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    files, order = OpenFiles(), []

    def opening(file: Path) -> int:
        return os.open(file, os.O_RDONLY)

    borrowed = files.borrow(tmp_path / "a", opening)

    def shut() -> None:
        files.shut()
        order.append("shut")

    closer = threading.Thread(target=shut)
    closer.start()
    closer.join(timeout=0.1)
    assert closer.is_alive() and os.pread(borrowed.descriptor, 1, 0) == b"a"
    order.append("given back")
    files.give_back(borrowed)
    closer.join(timeout=10)
    assert order == ["given back", "shut"]
    with pytest.raises(OSError, match="no longer in use"):
        files.borrow(tmp_path / "a", opening)


def test_what_is_in_use_is_closed_when_it_is_given_back(tmp_path: Path) -> None:
    """A worker that outlives a stopped merge reads on from the file that it began with."""
    (tmp_path / "a").write_text("a")
    files, before = OpenFiles(), len(os.listdir("/dev/fd"))
    borrowed = files.borrow(tmp_path / "a", lambda file: os.open(file, os.O_RDONLY))
    files.close()
    assert os.pread(borrowed.descriptor, 1, 0) == b"a"
    files.give_back(borrowed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pread(borrowed.descriptor, 1, 0)
    assert len(os.listdir("/dev/fd")) == before and not open_files._oldest_first
