"""Kills merges at random moments and lets them go on, until each has come to its end.

One process loads everything once and forks a child for each run, so that a run takes little more than the
merge itself and kills fall into all parts of it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.crash.families import FAMILIES, Family, run_family, write_inputs
from tests.helpers import kept, listing, write_folder


@dataclass
class Count:
    """What was seen: kills by what they left behind, and merges that came to their end after kills."""

    kills: int = 0
    finished: int = 0
    left: dict[str, int] = field(default_factory=dict)

    def add(self, state: str) -> None:
        self.kills += 1
        self.left[state] = self.left.get(state, 0) + 1


def fork_run(family: Family, out: Path, place: Path, kill_after: float | None, **options: object) -> bool:
    """Runs a merge in a child and kills it after so many seconds; whether it came to its end before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run_family(family, out, place, **options)
            code = 0
        except BaseException as error:
            print(f"{family.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert os.waitstatus_to_exitcode(status) == 0, f"{family.name}: a run failed"
    return True


def campaign(family: Family, kills: int, work: Path, rng: random.Random) -> Count:
    """Kills a family's merge so many times.

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
    started = time.monotonic()
    fork_run(family, out, place, None, threads=2)
    duration = time.monotonic() - started
    assert content(out) == expected, f"{family.name}: two runs differ in {_differs(content(out), expected)}"
    _clear(home)
    while count.kills < kills:
        overwrite = rng.random() < 0.5
        if overwrite:
            shutil.copytree(place / "old", out)
        before = content(out) if overwrite else {}
        while not fork_run(
            family,
            out,
            place,
            rng.uniform(0, duration) if count.kills < kills else None,
            threads=rng.choice((1, 2)),
            overwrite=overwrite,
        ):
            now = content(out) if out.exists() else {}
            assert now in (before, expected), f"{family.name}: {_differs(now, expected)} after a kill"
            count.add("published" if now == expected and not kept(home) else _state(home))
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


def _state(home: Path) -> str:
    """How far a merge was when it was killed."""
    journals = [file.read_bytes().count(b"\n") for file in home.rglob(".*.merging/journal")]
    if not journals:
        return "nothing begun"
    return "nothing finished" if max(journals) <= 1 else "some tensors finished"


def _clear(home: Path) -> None:
    for entry in home.iterdir():
        if entry.is_dir():  # not the recipe
            shutil.rmtree(entry)


def run(kills: int, work: Path, seed: int, names: list[str]) -> dict[str, Count]:
    """The campaign over all families, or those named."""
    torch.set_num_threads(1)  # a pool of threads would not live on in a child
    rng = random.Random(seed)
    chosen = [family for family in FAMILIES if not names or family.name in names]
    return {family.name: campaign(family, kills, work, rng) for family in chosen}


QUICK = (
    "linear", "stochastic rounding", "task_arithmetic", "karcher", "ties of the model", "dare_ties",
    "orthogonal", "slices", "adapter", "two recipes",
)  # fmt: skip
"""Families that need no more imports than torch."""


def quick(kills: int) -> None:
    """A few kills of each family; prints what they left, as JSON."""
    with tempfile.TemporaryDirectory(prefix="merge-models-kill-") as work:
        counts = run(-(-kills // len(QUICK)), Path(work), random.randrange(1 << 30), list(QUICK)).values()
    total: dict[str, int] = {}
    for count in counts:
        for state, number in count.left.items():
            total[state] = total.get(state, 0) + number
    print(json.dumps(total))
