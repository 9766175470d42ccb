"""What orthogonal merging costs from end to end: three bf16 parents and their base, folder to folder.

    python -m benchmarks.orthogonal --size 135m

Each variant is one process of `merge-models run`: wall time by the clock around it, CPU time and peak
memory from the kernel. On a machine that does other work the CPU time is what to compare. `linear` is there
for scale. The figures are medians over tensors: how far the merged rotation turns, what its generator was
multiplied by, what share of the deltas rotations explain. The models' weights are Gaussian
(benchmarks/models.py): shares of trained models differ, times do not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import models, speed
from merge_models.merge.checkpoint.outputs.staging import MANIFEST

VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "input": {},
    "smaller": {"side": "smaller"},
    "conflict": {"side": "smaller", "variant": "conflict"},
    "log": {"side": "smaller", "map": "log"},
    "ties": {"side": "smaller", "residual": "ties"},
    "blocks": {"block_size": 32},
}
FIGURES = ("angle", "correction", "explained", "conflict_rows")


def recipe_for(variant: str, base: Path, parents: list[Path]) -> dict[str, Any]:
    """A recipe in mergekit's YAML dialect."""
    plain = variant == "linear"
    recipe: dict[str, Any] = {
        "merge_method": "linear" if plain else "orthogonal",
        "models": [{"model": str(parent)} for parent in parents],
        "parameters": VARIANTS[variant],
        "dtype": "bfloat16",
    }
    return recipe if plain else recipe | {"base_model": str(base)}


def measure(variant: str, args: argparse.Namespace, folder: Path) -> None:
    """Merge once; print what it took and what it found."""
    file, out = folder / "recipe.yml", folder / "out"
    file.write_text(yaml.safe_dump(recipe_for(variant, *models.folders(args.dir, args.size))))
    sample = speed.timed(speed.ours().command(file, out), folder, args.threads)
    found = medians(out)
    shutil.rmtree(out)
    told = "  ".join(f"{key} {value:.3g}" for key, value in found.items())
    print(
        f"{variant:>9}: {sample.wall_s:7.1f} s, CPU {sample.cpu_s:7.1f} s, {sample.rss_mb:6.0f} MB  {told}",
        flush=True,
    )


def medians(out: Path) -> dict[str, float]:
    """Medians over tensors of the figures in a merge's manifest."""
    told = json.loads((out / MANIFEST).read_text())["figures"].values()
    values = {key: [figures[key] for figures in told if key in figures] for key in FIGURES}
    return {key: statistics.median(found) for key, found in values.items() if found}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.orthogonal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=models.SIZES, default="135m")
    parser.add_argument("--dir", type=Path, default=models.default_dir())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", default="linear,input,smaller,ties", help=",".join(VARIANTS))
    args = parser.parse_args()
    args.dir, variants = args.dir.resolve(), args.variants.split(",")
    if unknown := set(variants) - set(VARIANTS):
        parser.error(f"unknown variant {', '.join(sorted(unknown))}: choose from {', '.join(VARIANTS)}")
    speed.prepare(args)
    print(f"{args.size}, three bf16 parents and a base, {args.threads} threads", flush=True)
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="run-") as folder:
        for variant in variants:
            measure(variant, args, Path(folder))


if __name__ == "__main__":
    main()
