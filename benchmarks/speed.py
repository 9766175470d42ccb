"""How fast we merge, beside the disk's own speed and beside mergekit, on the same files in one run.

    python -m benchmarks.speed --size 1b --peer PYTHON --json OUT.json

Three contenders merge, or copy, the same bf16 checkpoints (benchmarks/models.py):

- *ours*: `merge-models run RECIPE -o OUT --quiet`.
- *floor*: a Python process without torch that reads every model of the recipe and writes one copy;
  what no merge can beat.
- *peer*: `mergekit-yaml RECIPE OUT --quiet` of the environment that `--peer` names.

Each sample is a whole process, the start of Python and of torch included: wall time by the clock
around it; CPU time (user + system) and peak resident memory from the kernel (`wait4`). Resident
memory counts mapped files too. Before anything is timed, each program has merged a tiny model and
all inputs have been read, so programs and inputs are in the page cache where memory allows it.
Contenders take turns (ours, floor, peer, ours, floor, ...), all on the first `--threads` CPUs. A
sample ends with its process: what the page cache has yet to write to the disk is not waited for.
Outside the clock an output is checked for its size and deleted, and the disk is synced, before the
next turn. Figures are medians; MB are 10^6 bytes.

This process must stay small: the kernel counts in a child's peak what its parent had at the fork,
so torch and the making of models live in other processes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from benchmarks import models

WEIGHTS = (0.4, 0.3, 0.3)


@dataclass(frozen=True)
class Method:
    """How a method is asked for: what its recipe holds besides the models."""

    parents: int = 3
    base: bool = True
    weights: bool = True
    each: dict[str, float] = field(default_factory=dict)  # parameters of each model
    whole: dict[str, float] = field(default_factory=dict)  # parameters of the merge
    in_peer: bool = True
    named: str = ""  # in the recipe, where that is another name
    dtype: str = "bfloat16"  # that the peer computes in; results are bfloat16


METHODS = {
    "linear": Method(base=False),
    "task_arithmetic": Method(),
    "ties": Method(each={"density": 0.5}),
    "dare_linear": Method(each={"density": 0.5}),
    "dare_ties": Method(each={"density": 0.5}),
    "della_linear": Method(each={"density": 0.5, "epsilon": 0.1}),
    "della": Method(each={"density": 0.5, "epsilon": 0.1}),
    "breadcrumbs": Method(each={"density": 0.9, "gamma": 0.01}),
    "breadcrumbs_ties": Method(each={"density": 0.9, "gamma": 0.01}),
    "sce": Method(weights=False, whole={"select_topk": 0.5}),
    "ram": Method(weights=False),
    "ramplus_tl": Method(weights=False),
    "nearswap": Method(parents=1, weights=False, whole={"t": 0.001}),
    "arcee_fusion": Method(parents=1, weights=False),
    "passthrough": Method(parents=1, base=False, weights=False),
    "consensus": Method(in_peer=False),
    "magmax": Method(in_peer=False),
    "pcb": Method(in_peer=False),
    "stochastic": Method(base=False, in_peer=False),
    "model_stock": Method(weights=False),
    "karcher": Method(base=False, weights=False),
    "karcher_float32": Method(base=False, weights=False, named="karcher", dtype="float32"),
    "slerp": Method(parents=2, weights=False, whole={"t": 0.4}),  # from the base to a parent
    "nuslerp": Method(parents=2, base=False),
    "multislerp": Method(base=False),
    "norm_mean": Method(base=False, in_peer=False),
}


@dataclass(frozen=True)
class Bar:
    """A promise about one figure of one method; it holds at the sizes that it names."""

    method: str
    figure: str
    sense: str
    limit: float
    sizes: tuple[str, ...] = ("1b",)

    def text(self) -> str:
        return f"{self.method}: {self.figure} {self.sense} {self.limit:g}"

    def met(self, value: float | None) -> bool | None:
        if value is None:
            return None
        return value >= self.limit if self.sense == ">=" else value <= self.limit


BARS = (
    Bar("linear", "peer/ours", ">=", 5),
    Bar("linear", "ours/floor", "<=", 2.5),
    Bar("linear", "ours RSS MB", "<=", 600, ("1b", "3b")),
    Bar("task_arithmetic", "peer/ours", ">=", 6),
)


class Failed(Exception):
    """A contender exited with an error, or left an output that is too small."""


@dataclass(frozen=True)
class Sample:
    """What one process took."""

    wall_s: float
    cpu_s: float
    rss_mb: float


@dataclass(frozen=True)
class Contender:
    """A name, and the command that it runs for a recipe and an output folder."""

    name: str
    command: Callable[[Path, Path], list[str]]


# ---- contenders ----


def floor(threads: int, sources: list[list[str]], out: str) -> None:
    """Read all files of `sources`, in pieces of 1 MiB, and write those of the first to `out`.

    Larger pieces fall out of a core's cache between read and write, and are slower. It runs
    from its source alone, so that its process imports nothing but this.
    """
    import os
    from threading import Thread

    size = 1 << 20
    os.mkdir(out)
    pieces: list[tuple[int, int, int, int]] = []
    for folder in sources:
        for path in folder:
            file, end = os.open(path, os.O_RDONLY), os.stat(path).st_size
            target = -1
            if folder is sources[0]:
                copy = os.path.join(out, os.path.basename(path))
                target = os.open(copy, os.O_WRONLY | os.O_CREAT, 0o644)
            pieces += [(file, target, at, min(size, end - at)) for at in range(0, end, size)]
    work = iter(pieces)

    def run() -> None:
        buffer = memoryview(bytearray(size))
        for file, target, at, length in work:
            os.preadv(file, [buffer[:length]], at)
            if target >= 0:
                os.pwrite(target, buffer[:length], at)

    workers = [Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def ours() -> Contender:
    script = Path(sys.executable).with_name("merge-models")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "merge_models.merge.cli"]
    return Contender("ours", lambda recipe, out: [*start, "run", f"{recipe}", "-o", f"{out}", "--quiet"])


def peer(python: Path) -> Contender:
    script = python.with_name("mergekit-yaml")
    start = [str(script)] if script.exists() else [str(python), "-m", "mergekit.scripts.run_yaml"]
    return Contender("peer", lambda recipe, out: [*start, f"{recipe}", f"{out}", "--quiet"])


def bare_disk(threads: int) -> Contender:
    def command(recipe: Path, out: Path) -> list[str]:
        sources = [[str(f) for f in models.weight_files(d)] for d in inputs(recipe)]
        call = f"floor({threads}, {sources!r}, {str(out)!r})"
        return [sys.executable, "-I", "-c", f"{inspect.getsource(floor)}\n{call}"]

    return Contender("floor", command)


# ---- recipes ----


def write_recipe(path: Path, name: str, base: Path, parents: list[Path]) -> Path:
    """Write a recipe in mergekit's YAML dialect."""
    method = METHODS[name]
    chosen = parents[: method.parents]
    if name == "slerp":
        chosen = [base, parents[0]]
    entries: list[dict[str, Any]] = []
    for folder, weight in zip(chosen, WEIGHTS, strict=False):
        own = ({"weight": weight} if method.weights else {}) | method.each
        entries.append({"model": str(folder)} | ({"parameters": own} if own else {}))
    recipe: dict[str, Any] = {"merge_method": method.named or name, "models": entries}
    if method.base:
        recipe["base_model"] = str(base)
    if method.whole:
        recipe["parameters"] = method.whole
    recipe |= {"dtype": method.dtype, "out_dtype": "bfloat16"}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def inputs(recipe: Path) -> list[Path]:
    """Every model folder that a recipe reads, once."""
    content = yaml.safe_load(recipe.read_text())
    named = [entry["model"] for entry in content["models"]]
    base = [content["base_model"]] if "base_model" in content else []
    return [Path(name) for name in dict.fromkeys(named + base)]


# ---- measuring ----


def timed(command: list[str], folder: Path, threads: int) -> Sample:
    """Run one process in `folder` and return what it took; raises Failed with its last words."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(command, stdout=said, stderr=said, cwd=folder, env=env)
        except OSError as error:
            raise Failed(str(error)) from None
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no message")
            raise Failed(f"exit code {child.returncode}: {last.strip()}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def turn(contender: Contender, recipe: Path, threads: int) -> Sample:
    """One sample: into a fresh output folder, which is checked and deleted."""
    out = recipe.parent / f"out-{contender.name}"
    try:
        sample = timed(contender.command(recipe, out), recipe.parent, threads)
        wanted = _weight_bytes(inputs(recipe)[0])
        if not 0.99 < _weight_bytes(out) / wanted < 1.01:
            raise Failed(f"wrote {_weight_bytes(out)} bytes of weights, not {wanted}")
    finally:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
    return sample


def _weight_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in models.weight_files(folder))


def compete(contenders: dict[Contender, int], recipe: Path, threads: int) -> dict[str, list[Sample]]:
    """Let contenders take turns, each as often as its number says."""
    samples: dict[str, list[Sample]] = {c.name: [] for c in contenders}
    for round_ in range(max(contenders.values())):
        for contender, runs in contenders.items():
            if round_ < runs:
                try:
                    sample = turn(contender, recipe, threads)
                except Failed as error:
                    raise SystemExit(f"{contender.name} failed: {error}") from None
                samples[contender.name].append(sample)
                _say(f"  {contender.name} {sample.wall_s:.2f} s, {sample.rss_mb:.0f} MB")
    return samples


def willing(contenders: dict[Contender, int], tiny: Path, threads: int) -> dict[Contender, int]:
    """Those that can merge the tiny models; this also brings their programs into the page cache."""
    out: dict[Contender, int] = {}
    for contender, runs in contenders.items():
        try:
            turn(contender, tiny, threads)
            out[contender] = runs
        except Failed as error:
            _say(f"  {contender.name} left out: {error}")
    return out


def bench(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one method; returns its figures."""
    _say(f"{name}:")
    contenders = {ours(): args.runs, bare_disk(args.threads): args.runs}
    if args.peer and METHODS[name].in_peer:
        contenders[peer(args.peer)] = args.peer_runs
    tiny = write_recipe(folder / "tiny.yml", name, *models.folders(args.dir, "tiny"))
    contenders = willing(contenders, tiny, args.threads)
    recipe = write_recipe(folder / "recipe.yml", name, *models.folders(args.dir, args.size))
    turn(bare_disk(args.threads), recipe, args.threads)  # the inputs into the page cache
    samples = compete(contenders, recipe, args.threads)
    read = sum(_weight_bytes(d) for d in inputs(recipe))
    fits = (read + _weight_bytes(inputs(recipe)[0])) / _memory() < 0.8
    if not fits:
        _say("  note: the page cache cannot hold these files, so times are those of the disk")
    stats: dict[str, Any] = {who: _summary(s) for who, s in samples.items()}
    return stats | {"ratios": _ratios(stats), "read_bytes": read, "page_cache_fits": fits}


def _summary(samples: list[Sample]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for what in ("wall_s", "cpu_s", "rss_mb"):
        values = [round(getattr(s, what), 3) for s in samples]
        out[what] = {
            "median": round(statistics.median(values), 3),
            "min": min(values),
            "max": max(values),
            "all": values,
        }
    return out


def _ratios(stats: dict[str, Any]) -> dict[str, float]:
    wall = {who: s["wall_s"]["median"] for who, s in stats.items()}
    pairs = (("ours", "floor"), ("peer", "ours"), ("peer", "floor"))
    return {f"{a}/{b}": round(wall[a] / wall[b], 2) for a, b in pairs if a in wall and b in wall}


def judge(size: str, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each bar that holds at this size for a method that ran: its value, and whether it is met."""
    out: list[dict[str, Any]] = []
    for bar in BARS:
        if size in bar.sizes and bar.method in results:
            value = _figure(results[bar.method], bar.figure)
            out.append({"bar": bar.text(), "value": value, "met": bar.met(value)})
    return out


def _figure(stats: dict[str, Any], figure: str) -> float | None:
    if figure == "ours RSS MB":
        return stats["ours"]["rss_mb"]["max"] if "ours" in stats else None
    return stats["ratios"].get(figure)


# ---- reporting ----


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on, without the machine's name or paths."""
    packages = ("merge-models", "torch", "safetensors", "numpy")
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "threads": args.threads,
        "memory_gb": round(_memory() / 1e9, 1),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in packages},
    }
    if args.peer:
        facts["peer"] = _peer_versions(args.peer)
    return facts


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _peer_versions(python: Path) -> str:
    names = ("mergekit", "torch", "transformers", "safetensors")
    show = f"print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    code = f"from importlib.metadata import version; {show}"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no mergekit in the environment of {python}: {done.stderr.strip()[-200:]}")
    return done.stdout.strip()


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line per method: medians, with the range of a wall time that has one."""
    head = "method,ours s,CPU s,RSS MB,floor s,ours/floor,peer s,peer RSS,peer/ours".split(",")
    rows: list[list[str]] = [[*head]]
    for name, stats in results.items():
        ratios = stats["ratios"]
        rows.append(
            [
                name,
                _cell(stats, "ours", "wall_s", 2),
                _cell(stats, "ours", "cpu_s", 2),
                _cell(stats, "ours", "rss_mb", 0),
                _cell(stats, "floor", "wall_s", 2),
                str(ratios.get("ours/floor", "-")),
                _cell(stats, "peer", "wall_s", 2),
                _cell(stats, "peer", "rss_mb", 0),
                str(ratios.get("peer/ours", "-")),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ("  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
    return "\n".join(lines)


def _cell(stats: dict[str, Any], who: str, what: str, digits: int) -> str:
    if who not in stats:
        return "-"
    s = stats[who][what]
    text = f"{s['median']:.{digits}f}"
    spread = what == "wall_s" and len(s["all"]) > 1
    return f"{text} [{s['min']:.{digits}f}-{s['max']:.{digits}f}]" if spread else text


def _say(line: str) -> None:
    print(line, flush=True)


# ---- command line ----


def prepare(args: argparse.Namespace) -> None:
    """Check the disk, make the models in a process of their own, keep to the CPUs asked for."""
    args.dir.mkdir(parents=True, exist_ok=True)
    sizes = list(dict.fromkeys(["tiny", args.size]))
    missing = [s for s in sizes if not models.complete(args.dir, s)]
    needed = sum(4 * models.tensor_bytes(s) for s in missing) + models.tensor_bytes(args.size)
    models.need_space(args.dir, needed, "models and one output")
    for size in missing:
        command = [
            sys.executable,
            "-m",
            "benchmarks.models",
            "--size",
            size,
            "--dir",
            str(args.dir),
        ]
        subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=True)
    os.sync()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=models.SIZES, default="1b")
    parser.add_argument("--dir", type=Path, default=models.default_dir(), help="for models and outputs")
    parser.add_argument("--methods", default="linear,task_arithmetic", help=",".join(METHODS))
    parser.add_argument("--runs", type=int, default=3, help="of ours and of the floor")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="of an environment with mergekit")
    parser.add_argument("--peer-runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.dir = args.dir.resolve()
    args.peer = args.peer and args.peer.absolute()  # resolved, it would leave its environment
    args.methods = args.methods.split(",")
    if args.peer and not args.peer.is_file():
        parser.error(f"--peer {args.peer} is not there")
    if unknown := set(args.methods) - set(METHODS):
        parser.error(f"unknown method {', '.join(sorted(unknown))}: choose from {', '.join(METHODS)}")
    if min(args.runs, args.peer_runs, args.threads) < 1:
        parser.error("--runs, --peer-runs and --threads must be at least 1")
    return args


def main() -> int:
    args = parse()
    facts = machine(args)
    prepare(args)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="run-") as folder:
        for name in args.methods:
            results[name] = bench(name, args, Path(folder))
    bars = judge(args.size, results)
    _say(f"\n{facts['cpu']}, {args.threads} of {facts['cpus']} CPUs, {args.size}\n{table(results)}")
    for bar in bars:
        verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
        value = "" if bar["value"] is None else f" (it is {bar['value']:g})"
        _say(f"{verdict:>12}  {bar['bar']}{value}")
    if args.json:
        report = {"machine": facts, "size": args.size, "methods": results, "bars": bars}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all("ours" in stats for stats in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
