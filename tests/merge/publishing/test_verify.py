"""What an output proves: manifest, ``verify``, ``reproduce``; and that bytes depend on the recipe alone."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from click.testing import CliRunner
from safetensors import safe_open
from xxhash import xxh3_128

from merge_models.merge import CheckpointError, MergeError, merge, run_recipe
from merge_models.merge.api.reproduce import reproduce
from merge_models.merge.cli import main
from merge_models.merge.publishing.verify import verify
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.running import scheduler as loop
from merge_models.merge.strategies import STRATEGIES, BaseModel
from tests.crash.families import FAMILIES, run_family, write_inputs
from tests.helpers import ROOT, listing, point_hub, tensors, write_folder, write_hub, write_models
from tests.merge.strategies.cases import CASES, Case

MANIFEST = "merge_manifest.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and one merge of them, in several shards; tests copy what they change."""
    place = tmp_path_factory.mktemp("made")
    write_inputs(place)
    run_family(FAMILIES[0], place / "out", place, shard_size=20_000)
    return place


def copied(made: Path, place: Path) -> Path:
    return Path(shutil.copytree(made / "out", place / "out"))


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


# The manifest


def test_the_manifest_s_digests_are_what_the_documentation_says(made: Path) -> None:
    record = json.loads((made / "out" / MANIFEST).read_text())

    def tree(data: bytes, plain: Callable[[bytes], Any]) -> str:
        pieces = [data[at : at + 2**18] for at in range(0, len(data), 2**18)]
        return plain(b"".join(plain(piece).digest() for piece in pieces)).hexdigest()

    seen = set()
    for file in (made / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                data = opened.get_tensor(name).numpy().tobytes()
                assert record["digests"]["tensors"][name] == f"blake3t:{tree(data, blake3)}"
                seen.add(name)
    assert seen == set(record["digests"]["tensors"]) and len(seen) > 20
    for given in record["inputs"]:
        (file,) = given["files"]
        with safe_open(file["path"], "pt") as opened:
            assert set(file["read"]) == set(opened.keys())
            for name, digest in file["read"].items():
                data = opened.get_tensor(name).numpy().tobytes()
                assert digest == f"xxh3t:{tree(data, xxh3_128)}", name
    for name, digest in record["digests"]["files"].items():
        assert digest == f"blake3:{blake3((made / 'out' / name).read_bytes()).hexdigest()}"
    assert set(record["digests"]["files"]) >= {"README.md", "config.json", "model.safetensors.index.json"}


def test_the_manifest_tells_resolved_strategies_by_group(tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": models[0], "parameters": {"weight": [{"filter": "mlp", "value": 3}, {"value": 1}]}},
            {"model": models[1], "parameters": {"weight": 1}},
        ],
    }
    run_recipe(parse_recipe(recipe), tmp_path / "out")
    groups = json.loads((tmp_path / "out" / MANIFEST).read_text())["output"]["groups"]
    assert [group["parameters"]["weight"] for group in groups] == [[1.0, 1.0], [3.0, 1.0]]
    assert [all("mlp" in name for name in group["tensors"]) for group in groups] == [False, True]
    assert sum(len(group["tensors"]) for group in groups) == len(tensors(0))


def test_every_shard_says_how_it_was_made_and_no_place_leaks(made: Path) -> None:
    record = json.loads((made / "out" / MANIFEST).read_text())
    for file in (made / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            told = opened.metadata()
        assert told["merge_models.recipe_digest"] == record["recipe_digest"]
        text = told["merge_models.recipe"]
        assert record["recipe_digest"] == f"blake3:{blake3(text.encode()).hexdigest()}"
        assert [f"model: m{number}" in text for number in range(4)] == [False, True, True, True]
    for name, data in listing(made / "out").items():
        assert (str(made).encode() in data) == (name == MANIFEST), name


def test_two_models_of_one_name_keep_two_names(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / place / "model", tensors(n)) for n, place in enumerate("ab")]
    merge(paths, out=tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "- `model`" in card and "- `model-2`" in card


def test_fast_digests_of_the_output(tmp_path: Path) -> None:
    """Any changed byte is still found, by digests that are quicker to take."""
    merge(write_models(tmp_path, 2), out=tmp_path / "out", output_digests="fast")
    out = tmp_path / "out"
    digests = json.loads((out / MANIFEST).read_text())["digests"]
    assert all(digest.startswith("xxh3t:") for digest in digests["tensors"].values())
    assert all(digest.startswith("blake3:") for digest in digests["files"].values())
    assert not verify(out).problems
    flip(out / "model.safetensors", (out / "model.safetensors").stat().st_size - 1)
    (problem,) = verify(out).problems
    assert "has changed" in problem
    with pytest.raises(MergeError, match="output_digests is 'fast' or 'strong'"):
        merge(["x"], out=tmp_path / "no", output_digests="weak")


def test_strong_digests_of_inputs(tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    merge(models, out=tmp_path / "out", input_digests="strong")
    record = json.loads((tmp_path / "out" / MANIFEST).read_text())
    read = [
        digest for given in record["inputs"] for file in given["files"] for digest in file["read"].values()
    ]
    assert read and all(digest.startswith("blake3t:") for digest in read)
    assert not verify(tmp_path / "out", inputs=True).problems
    with pytest.raises(MergeError, match="input_digests is 'fast' or 'strong'"):
        merge(models, out=tmp_path / "no", input_digests="weak")


# Verify


def test_an_untouched_output_is_what_it_was(made: Path) -> None:
    found = verify(made / "out", inputs=True, threads=2)
    assert not found.problems and found.tensors > 80 and found.bytes > 5_000_000
    done = CliRunner().invoke(main, ["verify", str(made / "out"), "--inputs"])
    assert done.exit_code == 0 and "are as they were written and read" in done.output


def test_any_changed_byte_is_found_and_named(made: Path, tmp_path: Path) -> None:
    """One byte in every file, at random: of a shard, the tensor is named that holds it."""
    out, rng = copied(made, tmp_path), random.Random(1)
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        kept = file.read_bytes()
        for _ in range(12 if file.suffix == ".safetensors" else 3):
            at = rng.randrange(len(kept))
            flip(file, at)
            if file.name == MANIFEST:
                with pytest.raises(CheckpointError, match="merge_manifest.json"):
                    verify(out)
            else:
                (problem,) = _distinct(verify(out).problems)
                assert file.name in problem
                holder = _holder(kept, at) if file.suffix == ".safetensors" else None
                assert holder is None or problem == f"{file}: tensor '{holder}' has changed"
            file.write_bytes(kept)
    assert not verify(out).problems


def _distinct(problems: tuple[str, ...]) -> list[str]:
    """Problems without those that follow from a header that cannot be read."""
    return [p for p in problems if "is missing" not in p] or list(problems)


def _holder(data: bytes, at: int) -> str | None:
    """The tensor that a byte of a safetensors file belongs to; None for its header."""
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    fields.pop("__metadata__")
    inside = at - 8 - length
    return next((n for n, f in fields.items() if f["data_offsets"][0] <= inside < f["data_offsets"][1]), None)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file more": (lambda out: (out / "modeling_x.py").write_text("x"), "modeling_x.py: is no part of this"),
    "a file less": (lambda out: (out / "config.json").unlink(), "config.json: is missing"),
    "a shard less": (lambda out: (out / "model-00002-of-00003.safetensors").unlink(), "00002.*: is missing"),
    "a shard cut": (
        lambda out: os.truncate(out / "model-00001-of-00003.safetensors", 9000), "00001.*truncated",
    ),
    "a shard renamed": (
        lambda out: (out / "model-00003-of-00003.safetensors").rename(out / "x.safetensors"),
        "00003.*missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told(case: str, made: Path, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    damage, words = DAMAGE[case]
    damage(out)
    done = CliRunner().invoke(main, ["verify", str(out)])
    assert done.exit_code == 1
    assert any(re.search(words, line) for line in done.output.splitlines()), done.output


def test_changed_inputs_are_found(tmp_path: Path) -> None:
    models = write_models(tmp_path, 3)
    merge(models, out=tmp_path / "out")
    file = Path(models[1]) / "model.safetensors"
    flip(file, file.stat().st_size - 1)
    (Path(models[2]) / "config.json").write_text("{}")
    shutil.rmtree(models[0])
    found = verify(tmp_path / "out", inputs=True).problems
    assert not verify(tmp_path / "out").problems
    holder = _holder(file.read_bytes(), file.stat().st_size - 1)
    assert f"{file}: tensor '{holder}' has changed" in found
    assert f"{models[2]}/config.json: has changed" in found
    assert f"{models[0]}/model.safetensors: is missing" in found


def test_hidden_files_do_not_matter(made: Path, tmp_path: Path) -> None:
    out = copied(made, tmp_path)
    (out / ".gitattributes").write_text("x")
    (out / ".cache").mkdir()
    (out / ".cache/x").write_text("x")
    assert not verify(out).problems


@pytest.mark.parametrize("text", [None, "{}", '{"format": 1}', '{"format": 2}', "[]", "nonsense"])
def test_folders_without_a_manifest(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    for call in (verify, reproduce):
        with pytest.raises(MergeError, match="merge_manifest.json"):
            call(tmp_path)


# Reproduce


@pytest.mark.parametrize("name", ["linear", "stochastic rounding", "slices", "adapter", "two recipes"])
def test_a_merge_is_reproduced_from_its_manifest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From relative paths, in another working folder, after the output was moved."""
    (family,) = (family for family in FAMILIES if family.name == name)
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_family(family, Path("out"), Path(), shard_size=50_000)
    moved = Path(shutil.move(tmp_path / "out", tmp_path / "elsewhere"))
    monkeypatch.chdir("/")
    made = reproduce(moved, scratch=tmp_path, threads=1)
    assert (made.differences, made.other_versions) == ((), ())
    assert made.tensors == len(json.loads((moved / MANIFEST).read_text())["digests"]["tensors"])
    assert not list(tmp_path.glob("merge-models-*"))


def test_what_does_not_come_out_the_same_is_named(tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    merge(models, out=tmp_path / "out")
    changed = tensors(0)
    changed["model.norm.weight"][0] += 1
    write_folder(Path(models[0]), changed)
    done = CliRunner().invoke(main, ["reproduce", str(tmp_path / "out"), "--scratch", str(tmp_path)])
    assert done.exit_code == 1
    assert done.output == "model.safetensors: tensor 'model.norm.weight' came out otherwise\n"
    shutil.rmtree(models[1])
    with pytest.raises(MergeError, match="m1"):
        reproduce(tmp_path / "out", scratch=tmp_path)


def test_reproduce_tells_what_is_no_part_of_a_merge(made: Path, tmp_path: Path) -> None:
    """As verify does: a file more could be code that the folder's reader runs."""
    out = copied(made, tmp_path)
    (out / ".gitattributes").write_text("x")
    assert reproduce(out, scratch=tmp_path).differences == ()
    (out / "code").mkdir()
    (out / "code/modeling_x.py").write_text("x")
    assert reproduce(out, scratch=tmp_path).differences == ("code/modeling_x.py: is no part of this merge",)


# Inputs from the Hub

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """org/one and org/two in a local cache, and a merge ``out`` of both and of a folder."""
    cache = tmp_path / "cache"
    write_hub(cache, "org/one", {OLD: tensors(0)})
    write_hub(cache, "org/two", {OTHER: tensors(1)})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    folder = write_folder(tmp_path / "local", tensors(2))
    merge(["org/one", "org/two@main", str(folder)], out=tmp_path / "out")
    return cache


def test_hub_inputs_are_found_at_the_commit_that_was_read(cache: Path, tmp_path: Path) -> None:
    """A branch that has moved on since changes nothing."""
    out = tmp_path / "out"
    models = json.loads((out / MANIFEST).read_text())["models"]
    assert models["org/one"] == {"repository": "org/one", "revision": OLD}
    assert models["org/two@main"] == {"repository": "org/two", "revision": OTHER}
    write_hub(cache, "org/one", {NEW: tensors(5)})
    assert not verify(out, inputs=True).problems
    assert reproduce(out, scratch=tmp_path).differences == ()
    assert merge(["org/one"], out=tmp_path / "moved") and listing(tmp_path / "moved") != listing(out)


def test_hub_inputs_are_found_in_another_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine, which has the same commits."""
    out, moved = tmp_path / "out", Path(shutil.move(cache, tmp_path / "elsewhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(moved))
    found = verify(out, inputs=True)
    assert not found.problems and found.tensors == 4 * len(tensors(0))
    assert reproduce(out, scratch=tmp_path).differences == ()
    (weights,) = (moved / "models--org--two/blobs").rglob("model.safetensors")
    flip(weights, weights.stat().st_size - 1)
    (problem,) = verify(out, inputs=True).problems
    assert re.search(rf"elsewhere/models--org--two/snapshots/{OTHER}/.* has changed", problem)
    (line,) = reproduce(out, scratch=tmp_path).differences
    assert line.startswith("model.safetensors: tensor '")


def test_hub_inputs_that_are_gone_are_named(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.rmtree(cache / "models--org--two")
    missing = verify(out, inputs=True).problems
    assert len(missing) == 2 and all(f"models--org--two/snapshots/{OTHER}/" in line for line in missing)
    with pytest.raises(MergeError, match=f"org/two@{OTHER}: no such folder, and not in the local Hub cache"):
        reproduce(out, scratch=tmp_path)
    point_hub(cache, "org/one", "main", OTHER)
    with pytest.raises(MergeError, match="org/one"):
        merge(["org/one", str(tmp_path / "local")], out=tmp_path / "no")


def test_a_hub_adapter_is_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and its adapter are two repositories, each at its own commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    write_inputs(tmp_path)
    (family,) = (family for family in FAMILIES if family.name == "adapter")
    for name, commit in {"m1": OLD, "adapter": NEW}.items():
        snapshot = tmp_path / f"cache/models--org--{name}/snapshots" / commit
        shutil.copytree(tmp_path / name, snapshot)
        point_hub(tmp_path / "cache", f"org/{name}", "main", commit)
    run_family(family, tmp_path / "local", tmp_path)
    merge(["org/m1+org/adapter", str(tmp_path / "m2")], out=tmp_path / "out")
    tensors_of = [
        json.loads((tmp_path / n / MANIFEST).read_text())["digests"]["tensors"] for n in ("local", "out")
    ]
    assert tensors_of[0] == tensors_of[1]
    assert not verify(tmp_path / "out", inputs=True).problems
    assert reproduce(tmp_path / "out", scratch=tmp_path).differences == ()


# Bytes depend on the recipe alone

BIG: dict[str, tuple[int, ...]] = {
    "layer.0": (300, 64), "layer.1": (40, 24), "bias": (24,), "table": (300_000,),
}  # fmt: skip
"""Matrices of both orientations, and a tensor of several blocks."""


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("parents")
    states = [tensors(seed, shapes=BIG) for seed in range(1 + max(case.count for case in CASES))]
    nearby = [{n: states[0][n] + 0.1 * state[n] for n in BIG} for state in states]
    return [write_folder(place / f"m{n}", state) for n, state in enumerate(nearby)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_threads_order_and_shards_change_no_byte(
    case: Case, parents: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads 1, 2 and 5; blocks taken in shuffled order; one shard or many."""
    chosen, base = parents[1 : 1 + case.count], base_of(case, parents)

    def digests(name: str, **options: Any) -> dict[str, str]:
        merge(chosen, case.strategy, base=base, out=tmp_path / name, dtype="bfloat16", **options)
        return json.loads((tmp_path / name / MANIFEST).read_text())["digests"]["tensors"]

    expected = digests("one", threads=1)
    assert digests("two", threads=2, shard_size=60_000) == expected
    enqueue, rng = loop.Scheduler._enqueue, random.Random(case.name)

    def shuffled(self: Any, job: Any) -> None:
        enqueue(self, job)
        with self._changed:
            rng.shuffle(self._ready)

    monkeypatch.setattr(loop.Scheduler, "_enqueue", shuffled)
    assert digests("five", threads=5, shard_size=1) == expected


def test_hash_seeds_change_no_byte(parents: list[Path], tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.merge.publishing.test_verify import merge_cases\n"
        "merge_cases(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])\n"
    )
    running = []
    for seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(tmp_path / seed), *map(str, parents)]
        running.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    assert [process.wait(timeout=240) for process in running] == [0, 0, 0]
    found = [json.loads((tmp_path / seed).read_text()) for seed in ("0", "1", "4242")]
    assert found[0] == found[1] == found[2] and len(found[0]) == len({case.strategy.name for case in CASES})


def base_of(case: Case, parents: list[Path]) -> Path | None:
    return None if case.strategy.base_model is BaseModel.PARENT else parents[0]


def merge_cases(target: Path, parents: list[Path]) -> None:
    """Digests of a merge by every strategy, written to ``target``: what another process compares."""
    torch.set_num_threads(1)
    found = {}
    for case in {case.strategy.name: case for case in CASES}.values():
        out, base = target.with_name(f"{target.name}-out"), base_of(case, parents)
        merge(parents[1 : 1 + case.count], case.strategy, base=base, out=out, dtype="bfloat16", threads=2)
        found[case.strategy.name] = json.loads((out / MANIFEST).read_text())["digests"]["tensors"]
        shutil.rmtree(out)
    target.write_text(json.dumps(found, sort_keys=True))


def test_every_strategy_is_in_the_table() -> None:
    assert {case.strategy.name for case in CASES} == {strategy.name for strategy in STRATEGIES}
