"""``max_memory`` is kept: measured at its least and with room to spare, for every kind of strategy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from merge_models.merge import PlanError, merge, prepare
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from merge_models.merge.cli import main
from merge_models.merge.recipes.recipe import recipe_of
from merge_models.merge.running import scheduler
from merge_models.merge.running.hands import Done, Hands
from merge_models.merge.running.held import HeldBlocks
from merge_models.merge.running.memory import FIXED_BYTES, Need, needed, within
from merge_models.merge.running.scheduler import Scheduler
from merge_models.merge.strategies import Karcher, Linear, Orthogonal, Ties
from tests.helpers import listing, write_folder, write_models

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "karcher": {},
    "ties": {"scope": "model", "density": 0.3},
    "orthogonal": {},
}

_MEASURE = """
import hashlib, json, os, re, sys
from pathlib import Path
import torch
from merge_models.merge import MergeError, run_recipe
from merge_models.merge.sizes import parse_size
from merge_models.merge.recipes.recipe import parse_recipe
methods, place = json.loads(sys.argv[1]), Path(sys.argv[2])
def run(recipe, out, limit):
    reading, writing = os.pipe()
    child = os.fork()  # a process of its own for every measurement
    if not child:
        os.close(reading)
        Path("/proc/self/clear_refs").write_text("5")
        try:
            run_recipe(recipe, out, threads=4, max_memory=limit)
            digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
            status = Path("/proc/self/status").read_text()
            told = [int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) << 10, digest]
        except MergeError as error:
            told = str(error)
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    told = json.loads(os.read(reading, 1 << 16))
    os.waitpid(child, 0)
    return told
found = {}
for method, parameters in methods.items():
    document = {"merge_method": method, "parameters": parameters, "base_model": str(place / "c")}
    recipe = parse_recipe({**document, "models": [{"model": str(place / name)} for name in "ab"]})
    refusal = run(recipe, place / "none", 50_000_000)
    least = parse_size(re.search(r"needs ([\\d.]+ \\wB)", refusal)[1]) + 4_000_000
    tight, roomy = (run(recipe, place / f"{method}-{limit}", limit) for limit in (least, 4 * 10**9))
    found[method] = [refusal, least, tight, roomy]
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_the_limit_is_kept_and_changes_no_byte(tmp_path: Path) -> None:
    """The least is what the refusal says, and 4 MB for how the program's own size varies from run to run."""
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        shapes = {"square": (512, 512), "tall": (2048, 512), "long": (1 << 19,)}
        state = {n: torch.randn(shape, generator=generator).bfloat16() for n, shape in shapes.items()}
        write_folder(tmp_path / name, state, config=None)
    arguments = [sys.executable, "-c", _MEASURE, json.dumps(METHODS), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for method, (refusal, least, tight, roomy) in json.loads(done.stdout).items():
        assert re.match(r"memory: this merge needs [\d.]+ MB with one thread .*, 50.0 MB is allowed", refusal)
        assert isinstance(tight, list) and isinstance(roomy, list), (method, tight, roomy)
        assert tight[1] == roomy[1], method
        assert tight[0] <= least, (method, tight[0] - least)


def test_workers_go_first_and_then_held_blocks(tmp_path: Path) -> None:
    plan = prepare(recipe_of(Karcher(), write_models(tmp_path, 3))).plan
    full = needed(plan, 8)
    assert full.held == plan.bytes_in and full.total == 8 * full.worker + full.held + FIXED_BYTES
    assert within(plan, 8, full.total + 100, 100) == full
    assert within(plan, 8, full.total + 99, 100) == Need(8, full.worker, full.held - 1, 0)
    least = Need(1, full.worker, 0, 0)
    assert within(plan, 8, least.total, 0) == least
    assert within(plan, 8, least.total + full.worker, 0).threads == 2
    with pytest.raises(PlanError, match="with one thread"):
        within(plan, 8, least.total - 1, 0)


def test_a_plan_says_what_max_memory_must_allow(tmp_path: Path) -> None:
    """Both count the program: what the plan calls the least is enough, and less is refused."""
    paths = write_models(tmp_path, 3)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(recipe_of(Karcher(), paths).yaml())

    def planned(*options: str) -> Any:
        return CliRunner().invoke(main, ["plan", str(recipe), "--threads", "4", "--json", *options])

    free = json.loads(planned().stdout)
    need = needed(prepare(recipe).plan, 4)
    assert free["threads"] == 4 and free["memory_bytes"] - free["memory_bytes_program"] == need.total
    least = free["memory_bytes_least"]
    assert least == free["memory_bytes_program"] + Need(1, need.worker, 0, need.beside).total
    slack = 4_000_000  # the program's own size varies
    tight = json.loads(planned("--max-memory", str(least + slack)).stdout)
    assert tight["memory_bytes"] <= least + slack
    merge(paths, Karcher(), out=tmp_path / "out", max_memory=least + slack)
    refused = planned("--max-memory", str(free["memory_bytes_program"]))
    assert refused.exit_code == 2 and "memory: this merge needs" in refused.stderr


def test_nothing_is_written_where_the_limit_is_too_small(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    before = listing(tmp_path)
    for limit in ("1MB", 5, "0.5 MiB"):
        with pytest.raises(PlanError, match="--max-memory"):
            merge(paths, Linear(), out=tmp_path / "out", max_memory=limit)
    assert listing(tmp_path) == before


def test_held_buffers_never_pass_the_budget() -> None:
    """Buffers of sizes that nobody asks for any more make room for others."""
    held, alive = HeldBlocks(1000), []
    for size in (100, 200, 300, 70, 500):
        buffers = held.lend([size] * (1000 // size))
        assert buffers is not None and all(buffer.nbytes == size for buffer in buffers)
        assert held._made <= 1000 and held.lend([size]) is None
        alive.append(len(buffers))
        held.give_back(buffers)
        assert held.lend([500, 501]) is None  # all of a block's buffers, or none
    assert alive == [10, 5, 3, 14, 2]


@pytest.mark.parametrize(
    ("strategy", "sampled"),
    [(Orthogonal(), 0), (Ties(scope="model", density=0.5), 0), (Ties(density=0.5), 16)],
    ids=["orthogonal", "ties", "ties by a sample"],
)
def test_parts_of_a_survey_do_not_pile_up(
    strategy: Any, sampled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first block of a survey is held up, the other workers wait with their parts."""
    paths = write_models(tmp_path, 3)
    monkeypatch.setattr("merge_models.merge.planning.task.BLOCK_ELEMENTS", 8)
    monkeypatch.setattr("merge_models.merge.strategies.families.rotation_side._BLOCK_ELEMENTS", 8)
    monkeypatch.setattr(scheduler, "SMALL_PARTS", 0)
    if sampled:  # parts that are listed, not added, need not wait
        monkeypatch.setattr("merge_models.merge.kernels.selection.samples.SAMPLE", sampled)
    measure, fold, most = Hands._measure, Scheduler._fold, []

    def slow(self: Any, passing: Any, piece: Any, buffers: Any) -> Done:
        time.sleep(0.05 if piece.number == 0 else 0)
        return measure(self, passing, piece, buffers)

    def watched(self: Any, job: Any, number: int, part: Any) -> bool:
        most.append(len(job.parts))
        return fold(self, job, number, part)

    monkeypatch.setattr(Hands, "_measure", slow)
    monkeypatch.setattr(Scheduler, "_fold", watched)
    merge(paths[:2], strategy, base=paths[2], out=tmp_path / "out", threads=3)
    assert 0 < max(most) and (sampled or max(most) <= 3)


@pytest.mark.parametrize("blocks", [0, 1, 3, 8])
def test_blocks_that_fit_are_read_once(blocks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tensor of eight blocks, surveyed and combined, those that cannot be held are read twice."""
    tensor = {"w": torch.randn(8 * 16, generator=torch.Generator().manual_seed(0)).view(8, 16)}
    paths = [write_folder(tmp_path / f"m{k}", {"w": tensor["w"] + k}) for k in range(2)]
    monkeypatch.setattr("merge_models.merge.planning.task.BLOCK_ELEMENTS", 16)
    monkeypatch.setattr("merge_models.merge.running.memory.HOLD_BYTES", blocks * 2 * 16 * 4)
    fetch, starts = Checkpoint.read, []

    def counted(self: Checkpoint, info: Any, start: int, stop: int, buffer: Any) -> Any:
        starts.append(start)
        return fetch(self, info, start, stop, buffer)

    monkeypatch.setattr(Checkpoint, "read", counted)
    merge(paths, Karcher(), out=tmp_path / "out", threads=1)
    assert len(starts) == 2 * (8 + 8 - blocks)
