"""What journal, digests and fsync add to a linear merge of three models of 1.1B parameters in bf16.

    python -m benchmarks.journal --runs 5

Four ways take turns, each a whole process on the same files: without digests and without fsync; with the
output's digests; with the inputs' too (as merges do it); and with the fsync before publishing as well (all of
it). The journal is always written: it is one line a tensor. CPU time is user + system. Figures are medians;
ratios are against the first way.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import models
from benchmarks.speed import Sample, timed, write_recipe

WAYS = ("bare", "output digests", "all digests", "all digests and fsync")

_CHILD = """
import sys
way, recipe, out = sys.argv[1:]
from merge_models.merge import output
from merge_models.merge.checkpoint import staging

class Unhashed:
    def add(self, start, data): pass
    def text(self): return "none"

if way == "bare":
    output.TensorDigest = lambda *given: Unhashed()
if way in ("bare", "output digests"):
    output._feeds = lambda plan: {t.name: [None] * len(t.sources()) for t in plan.tensors}
    output.digest_stored = lambda *given: "none"
if way != "all digests and fsync":
    staging.sync_tree = lambda folder: None
from merge_models.merge.cli import main
main(["run", recipe, "-o", out, "--quiet", "--threads", "2"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal", description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="1b")
    parser.add_argument("--dir", type=Path, default=models.default_dir())
    parser.add_argument("--runs", type=int, default=5)
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
        for number in range(options.runs + 1):
            for way in WAYS:
                command = [sys.executable, "-c", _CHILD, way, str(recipe), str(folder / "out")]
                sample = timed(command, folder, 2)
                shutil.rmtree(folder / "out")
                os.sync()
                if number:  # the first round warms up
                    samples[way].append(sample)
    first = samples[WAYS[0]]
    wall = statistics.median(sample.wall_s for sample in first)
    cpu = statistics.median(sample.cpu_s for sample in first)
    for way, taken in samples.items():
        walls, cpus = [s.wall_s for s in taken], [s.cpu_s for s in taken]
        mine, used = statistics.median(walls), statistics.median(cpus)
        print(
            f"{way:22} {mine:5.2f} s wall ({min(walls):.2f} to {max(walls):.2f}), {mine / wall - 1:+.1%};"
            f" {used:5.2f} s CPU, {used / cpu - 1:+.1%}"
        )


def _read(file: Path) -> None:
    """Brings a file into the page cache."""
    with open(file, "rb", buffering=0) as stream:
        buffer = bytearray(1 << 20)
        while stream.readinto(buffer):
            pass


if __name__ == "__main__":
    main()
