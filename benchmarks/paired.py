"""Whether a change made merges slower or larger: two installations of merge-models take turns on one recipe.

    python -m benchmarks.paired --before PYTHON --size 1b --methods linear,karcher --runs 7

`--before` names the interpreter of an environment where the earlier code is installed (`git worktree add`,
a venv, `pip install -e`). Each sample is a whole process of `merge-models run RECIPE -o OUT --quiet`, as in
benchmarks/speed.py. Within a round the two go first by turns, so that a machine that slows down or warms up
favours neither. Figures: the median over rounds of after/before, for wall time and CPU time, with the
smallest and largest; and the largest resident memory of each in MB of 10^6 bytes. Exits with 1 where a
median of wall time lies over `--limit`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks import models, orthogonal, speed
from benchmarks.speed import Contender, Sample


def installed(name: str, python: Path) -> Contender:
    """The `merge-models` of an environment, by its interpreter."""
    script = python.with_name("merge-models")
    return Contender(name, lambda recipe, out: [f"{script}", "run", f"{recipe}", "-o", f"{out}", "--quiet"])


def recipe_of(method: str, path: Path, base: Path, parents: list[Path]) -> Path:
    """Writes the recipe of a method of benchmarks/speed.py, or of `orthogonal` or `orthogonal:VARIANT`."""
    name, _, variant = method.partition(":")
    if name != "orthogonal":
        return speed.write_recipe(path, method, base, parents)
    path.write_text(yaml.safe_dump(orthogonal.recipe_for(variant or "input", base, parents)))
    return path


def rounds(
    before: Contender, after: Contender, recipe: Path, runs: int, threads: int
) -> list[tuple[Sample, Sample]]:
    """Pairs of samples (before, after); the first, which warms up, is left out."""
    pairs: list[tuple[Sample, Sample]] = []
    for number in range(runs + 1):
        order = (before, after) if number % 2 else (after, before)
        taken = {one.name: speed.turn(one, recipe, threads) for one in order}
        pairs.append((taken["before"], taken["after"]))
    return pairs[1:]


def report(method: str, pairs: list[tuple[Sample, Sample]]) -> float:
    """Prints one line; returns the median ratio of wall times."""
    wall = [after.wall_s / before.wall_s for before, after in pairs]
    cpu = [after.cpu_s / before.cpu_s for before, after in pairs]
    memory = [max(pair[side].rss_mb for pair in pairs) for side in (0, 1)]
    print(
        f"{method:20} wall {statistics.median(wall):.3f} ({min(wall):.3f} to {max(wall):.3f})"
        f"  CPU {statistics.median(cpu):.3f} ({min(cpu):.3f} to {max(cpu):.3f})"
        f"  RSS MB {memory[0]:.0f} -> {memory[1]:.0f}"
        f"  after {statistics.median(after.wall_s for _, after in pairs):.2f} s",
        flush=True,
    )
    return statistics.median(wall)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paired",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--size", choices=models.SIZES, default="1b")
    parser.add_argument("--dir", type=Path, default=models.default_dir())
    parser.add_argument("--methods", default="linear,task_arithmetic,karcher,dare_ties,ties")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1.03)
    args = parser.parse_args()
    args.dir = args.dir.resolve()
    speed.prepare(args)
    before, after = installed("before", args.before.absolute()), installed("after", Path(sys.executable))
    medians: list[float] = []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="paired-") as folder:
        for method in args.methods.split(","):
            recipe = recipe_of(method, Path(folder) / "recipe.yml", *models.folders(args.dir, args.size))
            medians.append(report(method, rounds(before, after, recipe, args.runs, args.threads)))
    sys.exit(max(medians) > args.limit)


if __name__ == "__main__":
    main()
