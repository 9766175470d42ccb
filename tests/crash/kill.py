"""Kills merges at random moments and lets them go on, until each has come to its end.

One process loads everything once and forks a child for each run, so that a run takes little more than the
merge itself. A child is killed

- after a random time, from outside: mostly in the middle of arithmetic or of a write, in any thread;
- at a random step, by itself: before, after or within one of the calls that change files, counted from the
  run's begin. Each call is as likely as any other, so publishing and cleaning up, which take no time, are
  hit as often as they have calls;
- as a process of its own, ``merge-models run`` started anew, after a random time: the start, with its imports
  and its own signal handlers, is in it.

What forking leaves out: libraries' thread pools and caches are those of the parent, loaded and idle. Calls
that a library makes itself (tokenizers write their own files) are no steps; only times hit them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from merge_models.merge.checkpoint.outputs import publish
from tests.crash.families import FAMILIES, Family, recipe_file, run_family, write_inputs
from tests.helpers import kept, listing, write_folder


@dataclass
class Count:
    """What was seen: kills by what they left behind, and merges that came to their end after kills."""

    kills: int = 0
    finished: int = 0
    ways: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def add(self, way: str, state: str) -> None:
        self.kills += 1
        self.ways[way] = self.ways.get(way, 0) + 1
        self.left[state] = self.left.get(state, 0) + 1


class Steps:
    """Counts the calls that change files, and kills its process at one of them.

    Args:
        last: the number of the call to die at, from 0; None counts only.
        rng: tells whether to die before, after, or (of a write) within it.
    """

    CALLS = (
        "open", "write", "pwrite", "ftruncate", "posix_fallocate", "fsync", "mkdir", "rename", "unlink",
        "rmdir",
    )  # fmt: skip

    def __init__(self, last: int | None, rng: random.Random) -> None:
        self.count = 0
        self._last, self._rng = last, rng

    def __enter__(self) -> Steps:
        fakes: dict[str, Any] = {name: self._watched(name, getattr(os, name)) for name in self.CALLS}
        exchange = self._watched("exchange", publish.exchange)
        self._patches = [mock.patch.multiple(os, **fakes), mock.patch.object(publish, "exchange", exchange)]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            if name == "open" and not given[1] & (os.O_CREAT | os.O_TRUNC):
                return real(*given, **options)
            number, self.count = self.count, self.count + 1
            if number != self._last:
                return real(*given, **options)
            way = self._rng.randrange(3)
            if way == 1 and name in ("write", "pwrite"):
                descriptor, data, *offset = given
                part = memoryview(data)[: self._rng.randrange(len(data))]
                real(descriptor, part, *offset)
            elif way:
                real(*given, **options)
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # never: the signal ends the process before

        return call


def fork_run(
    family: Family,
    out: Path,
    place: Path,
    *,
    seconds: float | None = None,
    step: tuple[int, random.Random] | None = None,
    **options: Any,
) -> bool:
    """Runs a merge in a child, killed after so many seconds or at a step; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if step is None:
                run_family(family, out, place, **options)
            else:
                with Steps(*step):
                    run_family(family, out, place, **options)
            code = 0
        except BaseException as error:
            print(f"{family.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return _came_to_its_end(family, os.waitstatus_to_exitcode(status))


def process_run(
    family: Family, out: Path, place: Path, *, seconds: float | None = None, overwrite: bool, threads: int
) -> bool:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "merge_models.merge.cli", "run", str(recipe_file(family, place))]
    command += ["-o", str(out), "--quiet", "--threads", str(threads), *(["--overwrite"] if overwrite else [])]
    process = subprocess.Popen(command)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return _came_to_its_end(family, process.wait())


def _came_to_its_end(family: Family, code: int) -> bool:
    assert code in (0, -signal.SIGKILL), f"{family.name}: a run failed"
    return code == 0


@dataclass(frozen=True)
class Undisturbed:
    """What a merge takes that nobody kills: seconds in a child, steps, seconds as a process of its own."""

    seconds: float
    steps: int
    whole_seconds: float


Attempt = Callable[..., bool]


def undisturbed(
    family: Family, home: Path, place: Path, expected: dict[str, bytes], *, whole: bool
) -> Undisturbed:
    """Measures a merge, as a process of its own only where asked; its bytes must be those expected."""
    out = home / "out"

    def check() -> None:
        assert content(out) == expected, f"{family.name}: runs differ in {_differs(content(out), expected)}"
        _clear(home)

    started = time.monotonic()
    fork_run(family, out, place, threads=2)
    seconds = time.monotonic() - started
    check()
    with Steps(None, random.Random()) as steps:
        run_family(family, out, place, threads=2)
    check()
    if not whole:
        return Undisturbed(seconds, steps.count, 0.0)
    started = time.monotonic()
    process_run(family, out, place, overwrite=False, threads=2)
    whole_seconds = time.monotonic() - started
    check()
    return Undisturbed(seconds, steps.count, whole_seconds)


def _attempt(
    family: Family, out: Path, place: Path, usual: Undisturbed, rng: random.Random, whole: float
) -> tuple[str, Attempt]:
    """A way to kill a run, drawn at random: its name, and the run."""
    if rng.random() < whole:
        seconds = rng.uniform(0, usual.whole_seconds)
        return "process", partial(process_run, family, out, place, seconds=seconds)
    if rng.random() < 0.5:
        return "time", partial(fork_run, family, out, place, seconds=rng.uniform(0, usual.seconds))
    step = rng.randrange(usual.steps), random.Random(rng.random())
    return "step", partial(fork_run, family, out, place, step=step)


def campaign(family: Family, kills: int, work: Path, rng: random.Random, whole: float = 0.05) -> Count:
    """Kills a family's merge so many times, a share ``whole`` of them as processes of their own.

    After each kill the target is what it was before or what an undisturbed merge makes, never anything else;
    at each end it is, byte by byte, the latter, and nothing else is left.
    """
    place, count = work / "models", Count()
    if not place.exists():
        write_inputs(place)
        write_folder(place / "old", {"x": torch.ones(3)}, files={"old.json": "{}"})
    home = work / family.name.replace(" ", "-")
    home.mkdir()
    out = home / "out"
    run_family(family, out, place, threads=1)  # here: what it imports, children need not import
    expected = content(out)
    _clear(home)
    usual = undisturbed(family, home, place, expected, whole=whole > 0)
    while count.kills < kills:
        overwrite = rng.random() < 0.5
        if overwrite:
            shutil.copytree(place / "old", out)
        before = content(out) if overwrite else {}
        while True:
            way, attempt = _attempt(family, out, place, usual, rng, whole)
            if count.kills >= kills:
                attempt = partial(fork_run, family, out, place)
            if attempt(threads=rng.choice((1, 2)), overwrite=overwrite):
                break
            now = content(out) if out.exists() else {}
            assert now in (before, expected), f"{family.name}: {_differs(now, expected)} after a kill"
            count.add(way, _state(home, now == expected))
            if now == expected:
                overwrite = True  # as a user would say who runs the same command again
                before = expected
        assert content(out) == expected, f"{family.name}: {_differs(content(out), expected)} at the end"
        assert not kept(home), f"{family.name}: something was left behind"
        count.finished += 1
        _clear(home)
    shutil.rmtree(home)
    return count


def content(out: Path) -> dict[str, bytes]:
    """What an output holds; without a manifest that tells when an intermediate result was made."""
    found = listing(out)
    if b'"earlier_recipes"' in found.get("merge_manifest.json", b""):
        del found["merge_manifest.json"]
    return found


def _differs(now: dict[str, bytes], expected: dict[str, bytes]) -> str:
    names = sorted(name for name in {*now, *expected} if now.get(name) != expected.get(name))
    return f"{', '.join(names)} not as expected"


def _state(home: Path, is_published: bool) -> str:
    """How far a merge was when it was killed."""
    if is_published:
        return "published, not cleaned up" if kept(home) else "published"
    journals = [file.read_bytes() for file in home.rglob(".*.merging/journal")]
    if not journals:
        return "nothing begun"
    if any(b'{"publishing":true}' in journal for journal in journals):
        return "about to be published"
    return "some tensors finished" if max(j.count(b"\n") for j in journals) > 1 else "nothing finished"


def _clear(home: Path) -> None:
    for entry in home.iterdir():
        if entry.is_dir():  # not the recipe
            shutil.rmtree(entry)


def run(kills: int, work: Path, seed: int, names: Sequence[str], whole: float = 0.05) -> dict[str, Count]:
    """The campaign over all families, or those named."""
    torch.set_num_threads(1)  # a pool of threads would not live on in a child
    rng = random.Random(seed)
    chosen = [family for family in FAMILIES if not names or family.name in names]
    return {family.name: campaign(family, kills, work, rng, whole) for family in chosen}


QUICK = (
    "linear", "stochastic rounding", "task_arithmetic", "karcher", "ties of the model", "dare_ties",
    "orthogonal", "slices", "adapter", "two recipes",
)  # fmt: skip
"""Families that need no more imports than torch."""


def quick(kills: int) -> None:
    """A few kills of each family; prints what they left, as JSON."""
    with tempfile.TemporaryDirectory(prefix="merge-models-kill-") as work:
        counts = run(-(-kills // len(QUICK)), Path(work), random.randrange(1 << 30), QUICK, 0.0).values()
    total: dict[str, int] = {}
    for count in counts:
        for state, number in count.left.items():
            total[state] = total.get(state, 0) + number
    print(json.dumps(total))
