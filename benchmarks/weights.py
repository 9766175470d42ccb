"""What the diagnosis of weights costs: a merge against three parents and their base, in a process of its own.

    python -m benchmarks.weights --size 1b --dir DIR

The checkpoints are those of benchmarks/models.py, the merge is their plain average. Wall time by the clock
around the call, CPU time (user + system) and peak resident memory of the whole process from the kernel. Two
promises are checked for 1b: under 60 s on two cores, and under 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import models

LIMITS = {"1b": (60.0, 1000.0)}  # seconds, MB
_CALL = """
import json, sys, time
from merge_models.evals.measures.weights.diagnose import diagnose_weights
merged, base, threads, *parents = sys.argv[1:]
began = time.perf_counter()
found = diagnose_weights(merged, parents, base, threads=int(threads))
wall = time.perf_counter() - began
ranks = [t.rank_error for t in found.tensors if t.rank_method == "estimated"]
print(json.dumps({"wall": wall, "tensors": len(found.tensors), "estimated": len(ranks),
    "largest rank_error": max(ranks, default=0.0), "norm_ratio": found.norm_ratio,
    "delta_norm_ratio": found.delta_norm_ratio, "effective_parents": found.effective_parents}))
"""


def run(merged: Path, base: Path, parents: list[Path], threads: int) -> dict[str, float]:
    """One diagnosis in a child process: what it printed, its CPU seconds and peak memory (MB)."""
    command = [sys.executable, "-c", _CALL, str(merged), str(base), str(threads), *map(str, parents)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        text = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the diagnosis failed with exit code {child.returncode}")
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return {**json.loads(text), "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss / scale}


def merged_model(parents: list[Path], out: Path) -> Path:
    """The parents' average, made once."""
    if not (out / "config.json").is_file():
        from merge_models.merge import merge
        from merge_models.merge.strategies import Linear

        merge(list(map(str, parents)), Linear(), out=out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--size", choices=models.SIZES, default="1b")
    parser.add_argument("--dir", type=Path, default=models.default_dir())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    base, parents = models.make(args.dir.resolve(), args.size)
    merged = merged_model(parents, base.parent / "merged-linear")
    runs = [run(merged, base, parents, args.threads) for _ in range(args.runs)]
    for one in runs:
        print(", ".join(f"{name} {value:.4g}" for name, value in one.items()), flush=True)
    seconds, megabytes = LIMITS.get(args.size, (float("inf"), float("inf")))
    wall, memory = min(one["wall"] for one in runs), max(one["rss"] for one in runs)
    print(f"wall {wall:.1f} s (limit {seconds:g}), peak memory {memory:.0f} MB (limit {megabytes:g})")
    sys.exit(wall > seconds or memory > megabytes)


if __name__ == "__main__":
    main()
