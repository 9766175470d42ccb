"""What journal, digests and fsync add to a linear merge of three models of 1.1B parameters in bf16.

    python -m benchmarks.journal --runs 5

The ways take turns, each a whole process on the same files, which lie in the page cache: bare (no journal, no
digests, no fsync); with the journal and fast digests of output and inputs; with the default ones (strong of
the output, fast of the inputs); with strong ones of both; and bare and default again with the fsync before
publishing. CPU time is user + system. Figures are medians. Ratios are medians of those within a round: to the
bare merge, with fsync where the way has it.

    python -m benchmarks.journal --shares

On a machine that others use, whole runs tell little. This clocks the CPU time within a run instead: that of
journal and digests (each thread's own clock), against all the rest of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import models
from benchmarks.speed import Sample, timed, write_recipe

WAYS = {  # the way -> what it is compared with
    "bare": "bare",
    "fast digests": "bare",
    "default digests": "bare",
    "strong digests": "bare",
    "bare, fsync": "bare, fsync",
    "default digests, fsync": "bare, fsync",
}

_CHILD = """
import sys
way, recipe, out = sys.argv[1:]
from merge_models.merge.checkpoint.outputs import staging
from merge_models.merge.publishing import staged

class Unhashed:
    def add(self, start, data): pass
    def text(self): return "none"

if way.startswith("bare"):
    staged.TensorDigest = lambda *given: Unhashed()
    staged._feeds = lambda plan: {task.name: [None] * len(task.reads) for task in plan.tasks}
    staged.digest_stored = lambda *given: "none"
    staging.Staging.note = lambda *given: None
if not way.endswith("fsync"):
    staging.sync_tree = lambda folder: None
options = ["--quiet", "--threads", "2"]
if way == "fast digests":
    options += ["--output-digests", "fast"]
if way == "strong digests":
    options += ["--input-digests", "strong"]
from merge_models.merge.cli import main
main(["run", recipe, "-o", out, *options])
"""


_CLOCKED = """
import functools, json, sys, threading, time
recipe, out, *kinds = sys.argv[1:]
from merge_models.merge.checkpoint import digest
from merge_models.merge.publishing.staged import StagedOutput
spent, inside = {}, threading.local()

def clock(owner, name):
    function = getattr(owner, name)
    @functools.wraps(function)
    def clocked(*given):
        if getattr(inside, "one", False):
            return function(*given)
        inside.one, began = True, time.thread_time()
        try:
            return function(*given)
        finally:
            inside.one = False
            key = threading.get_ident()
            spent[key] = spent.get(key, 0.0) + time.thread_time() - began
    setattr(owner, name, clocked)

for name in ("watch", "finish", "complete"):
    clock(StagedOutput, name)
clock(digest.TensorDigest, "add")
from merge_models.merge.api.merging import run_recipe
run_recipe(recipe, out, threads=2, output_digests=kinds[0], input_digests=kinds[1])
mine = sum(spent.values())
print(json.dumps([mine, time.process_time() - mine]))
"""


def shares(recipe: Path, out: Path, runs: int) -> None:
    """Prints what journal and digests take of the CPU time of runs, by kind of digest."""
    kinds = [("fast", "fast"), ("strong", "fast"), ("strong", "strong")]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in kinds}
    for _ in range(runs):
        for pair in kinds:
            command = [sys.executable, "-c", _CLOCKED, str(recipe), str(out), *pair]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            mine, rest = json.loads(told)
            found[pair].append((mine, rest))
            shutil.rmtree(out)
    for (output, inputs), pairs in found.items():
        ratios = [mine / rest for mine, rest in pairs]
        mine, rest = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"output {output:6} inputs {inputs:6} {mine:.3f} s of CPU beside {rest:.2f} s:"
            f" {statistics.median(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal", description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="1b")
    parser.add_argument("--dir", type=Path, default=models.default_dir())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shares", action="store_true", help="clock CPU time within runs")
    options = parser.parse_args()
    if not models.complete(options.dir, options.size):
        raise SystemExit(f"no models: python -m benchmarks.models --size {options.size} --dir {options.dir}")
    base, parents = models.folders(options.dir, options.size)
    samples: dict[str, list[Sample]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="journal-") as place:
        folder = Path(place)
        recipe = write_recipe(folder / "recipe.yml", "linear", base, parents)
        for parent in parents:
            for file in models.weight_files(parent):
                _read(file)
        if options.shares:
            shares(recipe, folder / "out", options.runs)
            return
        for number in range(options.runs + 1):
            for way in WAYS:
                command = [sys.executable, "-c", _CHILD, way, str(recipe), str(folder / "out")]
                sample = timed(command, folder, 2)
                shutil.rmtree(folder / "out")
                os.sync()
                if number:  # the first round warms up
                    samples[way].append(sample)
    for way, taken in samples.items():
        _tell(way, taken, samples[WAYS[way]])


def _tell(way: str, taken: list[Sample], base: list[Sample]) -> None:
    walls, cpus = [s.wall_s for s in taken], [s.cpu_s for s in taken]
    wall = statistics.median(mine.wall_s / other.wall_s for mine, other in zip(taken, base, strict=True))
    cpu = statistics.median(mine.cpu_s / other.cpu_s for mine, other in zip(taken, base, strict=True))
    print(
        f"{way:22} {statistics.median(walls):5.2f} s wall ({min(walls):.2f} to {max(walls):.2f}),"
        f" {wall - 1:+6.1%}; {statistics.median(cpus):5.2f} s CPU ({min(cpus):.2f} to {max(cpus):.2f}),"
        f" {cpu - 1:+6.1%}"
    )


def _read(file: Path) -> None:
    """Brings a file into the page cache."""
    with open(file, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 20)
        while stream.readinto(buffer):
            pass


if __name__ == "__main__":
    main()
