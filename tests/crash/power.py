"""A file system that forgets: what a merge did to a folder is recorded, and replayed as a crash may leave it.

The recorder stands in for the calls of ``os`` that change files. After a crash of the machine

- of each file's content, what was written before its last fsync is there; any of the later writes may be
  there, missing, or torn: cut into sectors of which some are there;
- names (files and folders made, renamed, removed) are there as after some moment between the last fsync of a
  folder and the crash: file systems keep the order of names, but not how far they got.

Growing a file counts as a write of zeros. What a file holds that was made but never written is zeros.
Files that a library writes itself (tokenizers) count as written when they are first seen, before their fsync.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from blake3 import blake3

from merge_models.merge.checkpoint.outputs import publish
from tests.crash.families import Family, run_family, write_inputs
from tests.crash.kill import content
from tests.helpers import kept, write_folder

SECTOR = 512
Step = tuple[Any, ...]


@dataclass
class Log:
    """What was done, in order.

    Steps are ``("make", path, number)``, ``("folder", path)``, ``("rename", from, to)``, ``("swap", a, b)``,
    ``("remove", path)``, ``("write", number, offset, bytes)``, ``("size", number, length)`` and
    ``("sync", number)``; a folder's sync is ``("names",)``. Numbers stand for files, whatever their names.
    The first ``begun`` steps make what was there before; ``times`` has the files' times of change.
    """

    steps: list[Step] = field(default_factory=list)
    begun: int = 0
    times: dict[int, int] = field(default_factory=dict)


@contextmanager
def recorded(root: Path) -> Iterator[Log]:
    """Records what happens under ``root`` through ``os``; what is there already counts as on the disk."""
    log = Log()
    files: dict[int, tuple[int, bool]] = {}  # descriptor -> (file's number, whether it appends)
    numbers: dict[int, int] = {}  # inode -> file's number
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            log.steps.append(("folder", str(path)))
        else:
            number = numbers[path.stat().st_ino] = len(log.steps)
            data = path.read_bytes()
            log.steps += [("make", str(path), number), ("write", number, 0, data), ("sync", number)]
    log.steps.append(("names",))
    log.begun = len(log.steps)
    real = {name: getattr(os, name) for name in _CALLS}

    def inside(path: Any) -> bool:
        return str(os.fspath(path)).startswith(str(root)) if not isinstance(path, int) else False

    def note_unseen(path: Any, inode: int) -> None:
        """A file that a library has made itself: as if made and written now, which is before its fsync."""
        assert Path(path).name in _UNSEEN, f"{path} was made by a call that is not recorded"
        numbers[inode] = len(log.steps)
        data = Path(path).read_bytes()
        log.steps += [("make", str(path), numbers[inode]), ("write", numbers[inode], 0, data)]

    def do_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        fresh = inside(path) and not os.path.lexists(path)
        descriptor = real["open"](path, flags, *rest, **options)
        if not inside(path):
            return descriptor
        inode = os.fstat(descriptor).st_ino
        if fresh:
            numbers[inode] = len(log.steps)
            log.steps.append(("make", str(path), numbers[inode]))
        if os.path.isdir(path):
            files[descriptor] = (-1, False)
        else:
            if inode not in numbers:
                note_unseen(path, inode)
            files[descriptor] = (numbers[inode], bool(flags & os.O_APPEND))
            if flags & os.O_TRUNC and not fresh:
                log.steps.append(("size", numbers[inode], 0))
        return descriptor

    def do_close(descriptor: int) -> None:
        files.pop(descriptor, None)
        real["close"](descriptor)

    def do_write(descriptor: int, data: Any) -> int:
        at = os.fstat(descriptor).st_size if descriptor in files and files[descriptor][1] else None
        if descriptor in files and at is None:
            at = os.lseek(descriptor, 0, os.SEEK_CUR)
        done = real["write"](descriptor, data)
        if descriptor in files:
            log.steps.append(("write", files[descriptor][0], at, bytes(data[:done])))
        return done

    def do_pwrite(descriptor: int, data: Any, offset: int) -> int:
        done = real["pwrite"](descriptor, data, offset)
        if descriptor in files:
            log.steps.append(("write", files[descriptor][0], offset, bytes(memoryview(data)[:done])))
        return done

    def do_size(name: str) -> Callable[..., None]:
        def call(descriptor: int, *lengths: int) -> None:
            real[name](descriptor, *lengths)
            if descriptor in files:
                log.steps.append(("size", files[descriptor][0], os.fstat(descriptor).st_size))

        return call

    def do_fsync(descriptor: int) -> None:
        number = files[descriptor][0] if descriptor in files else None
        log.steps.append(("names",) if number == -1 else ("sync", number))

    def do_mkdir(path: Any, *rest: Any, **options: Any) -> None:
        real["mkdir"](path, *rest, **options)
        if inside(path):
            log.steps.append(("folder", str(path)))

    def do_rename(source: Any, target: Any, **options: Any) -> None:
        real["rename"](source, target, **options)
        log.steps.append(("rename", str(source), str(target)))

    def do_remove(name: str) -> Callable[..., None]:
        def call(path: Any, **options: Any) -> None:
            full = path if options.get("dir_fd") is None else _path_of(options["dir_fd"]) / path
            real[name](path, **options)
            if inside(full):
                log.steps.append(("remove", str(full)))

        return call

    def do_exchange(left: Path, right: Path) -> bool:
        done = exchange(left, right)
        if done:
            log.steps.append(("swap", str(left), str(right)))
        return done

    exchange = publish.exchange
    fakes = {"open": do_open, "close": do_close, "write": do_write, "pwrite": do_pwrite, "fsync": do_fsync}
    fakes |= {"ftruncate": do_size("ftruncate"), "posix_fallocate": do_size("posix_fallocate")}
    fakes |= {"mkdir": do_mkdir, "rename": do_rename}
    fakes |= {name: do_remove(name) for name in ("unlink", "rmdir")}
    with mock.patch.multiple(os, **fakes), mock.patch.object(publish, "exchange", do_exchange):
        yield log
    for path in root.rglob("*"):
        if path.is_file():
            log.times[numbers[path.stat().st_ino]] = path.stat().st_mtime_ns


_CALLS = (
    "open", "close", "write", "pwrite", "ftruncate", "posix_fallocate", "fsync", "mkdir", "rename", "unlink",
    "rmdir",
)  # fmt: skip


_UNSEEN = ("tokenizer.json", "tokenizer_config.json")
"""Files that the tokenizers library writes."""


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def crash(log: Log, length: int, rng: random.Random) -> dict[str, tuple[bytes, int] | None]:
    """What may be found after a crash behind the first ``length`` steps: content and time of change by path,
    None for folders."""
    steps = log.steps[:length]
    barrier = max((i for i, step in enumerate(steps) if step[0] == "names"), default=0)
    reached = rng.choice((barrier, length, rng.randint(barrier, length)))
    names = _names(step for i, step in enumerate(steps) if i < reached)
    keep = rng.choice((0.0, 0.5, 1.0, rng.random()))
    found: dict[str, tuple[bytes, int] | None] = {}
    for path, number in names.items():
        found[path] = None
        if number is not None:
            found[path] = _content(steps, number, keep, rng), log.times.get(number, 0)
    return found


def _names(steps: Any) -> dict[str, int | None]:
    """Files' numbers by path, None for folders, after the steps that change names."""
    names: dict[str, int | None] = {}
    for step in steps:
        if step[0] == "make":
            names[step[1]] = step[2]
        elif step[0] == "folder":
            names[step[1]] = None
        elif step[0] == "remove":
            names.pop(step[1], None)
        elif step[0] == "rename":
            names = _moved(names, {step[1]: step[2]})
        elif step[0] == "swap":
            names = _moved(names, {step[1]: step[2], step[2]: step[1]})
    return names


def _moved(names: dict[str, int | None], moves: dict[str, str]) -> dict[str, int | None]:
    result: dict[str, int | None] = {}
    replaced = {target for target in moves.values() if target not in moves}
    for path, number in names.items():
        if any(path == old or path.startswith(f"{old}/") for old in replaced):
            continue
        source = next((old for old in moves if path == old or path.startswith(f"{old}/")), None)
        result[path if source is None else moves[source] + path[len(source) :]] = number
    return result


def _content(steps: list[Step], number: int, keep: float, rng: random.Random) -> bytes:
    own = [step for step in steps if step[0] in ("write", "size", "sync") and step[1] == number]
    synced = max((i for i, step in enumerate(own) if step[0] == "sync"), default=-1)
    data = bytearray()
    for i, step in enumerate(own):
        is_sure = i < synced
        if step[0] == "size" and (is_sure or rng.random() < keep):
            data = data[: step[2]].ljust(step[2], b"\0")
        elif step[0] == "write" and (is_sure or rng.random() < keep):
            torn = not is_sure and rng.random() < 0.3
            _put(data, step[2], step[3], rng if torn else None)
    return bytes(data)


def _put(data: bytearray, at: int, written: bytes, rng: random.Random | None) -> None:
    """Writes; where torn, only some of the sectors that it touches."""
    if len(data) < at + len(written):
        data.extend(bytes(at + len(written) - len(data)))
    if rng is None:
        data[at : at + len(written)] = written
        return
    start = at
    while start < at + len(written):
        end = min((start // SECTOR + 1) * SECTOR, at + len(written))
        if rng.random() < 0.5:
            data[start:end] = written[start - at : end - at]
        start = end


def lay_out(found: dict[str, tuple[bytes, int] | None], root: Path, place: Path) -> None:
    """Makes the files that a crash has left under ``root`` at ``place``."""
    place.mkdir()
    for path, file in sorted(found.items()):
        target = place / Path(path).relative_to(root)
        if file is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file[0])
            os.utime(target, ns=(file[1], file[1]))


def fingerprint(found: dict[str, tuple[bytes, int] | None], root: Path) -> bytes:
    """The same for equal disks, files' times aside."""
    state = blake3()
    for path, file in sorted(found.items()):
        parts = os.path.relpath(path, root).encode(), b"" if file is None else blake3(file[0]).digest()
        state.update(b"\0".join((*parts, b"")))
    return state.digest()


def _new_crash(log: Log, root: Path, rng: random.Random, seen: set[bytes]) -> Any:
    """What a crash leaves that none has left before; None where a hundred draws find nothing new."""
    for _ in range(100):
        found = crash(log, rng.randint(log.begun, len(log.steps)), rng)
        key = fingerprint(found, root)
        if key not in seen:
            seen.add(key)
            return found
    return None


def outage(family: Family, work: Path, rng: random.Random, seen: set[bytes]) -> int:
    """Cuts a merge off from power once or several times, then lets it come to its end.

    After each outage the target is what it was before or what an undisturbed merge makes; at the end it is
    the latter, byte by byte, and nothing else is left. Each run proves one disk and gives the log for the
    next. ``work`` holds what :func:`prepare` made; ``seen`` the disks that were tried with this family.

    Returns:
        How many times the power went, each time with another disk left.
    """
    expected = content(work / "expected" / family.name)
    root = Path(tempfile.mkdtemp(dir=work))
    out = root / "out"
    if rng.random() < 0.5:
        write_folder(out, {"x": torch.ones(3)}, files={"old.json": "{}"})
    allowed, outages = [content(out), expected], 0
    while True:
        with recorded(root) as log:
            run_family(family, out, work / "models", threads=rng.choice((1, 2)), overwrite=True)
        if outages and rng.random() < 0.6:
            break
        found = _new_crash(log, root, rng, seen)
        if found is None:
            break
        outages += 1
        shutil.rmtree(root)
        lay_out(found, root, root)
        assert content(out) in allowed, f"{family.name}: the target is half there after a crash"
    assert content(out) == expected, f"{family.name}: bytes differ after a crash"
    assert not kept(root), f"{family.name}: something was left behind"
    shutil.rmtree(root)
    return outages


def prepare(work: Path, families: Sequence[Family]) -> None:
    """Makes the models, and what undisturbed merges make of them."""
    write_inputs(work / "models")
    (work / "expected").mkdir()
    for family in families:
        run_family(family, work / "expected" / family.name, work / "models", threads=1)
