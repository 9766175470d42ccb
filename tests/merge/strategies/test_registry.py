"""Strategies by name: the package's, those of installed packages, and the caller's own objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from merge_models.merge import RecipeError, merge
from merge_models.merge.api.methods import describe_all
from merge_models.merge.strategies import STRATEGIES, Linear, registry
from merge_models.merge.strategies.registry import find_strategy, strategy_name
from tests.helpers import ROOT, read_folder, write_models

EXAMPLE = ROOT / "examples" / "own_strategy"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed by pip into a folder of its own."""
    place = tmp_path_factory.mktemp("site")
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "own_strategy")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(place), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def run(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line where the example package is installed."""
    paths = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "merge_models.merge.cli", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120
    )


def test_an_installed_strategy_merges_verifies_and_reproduces(installed: Path, tmp_path: Path) -> None:
    models, out = write_models(tmp_path, 3), tmp_path / "out"
    done = run(installed, "merge", *models, "-m", "median", "--set", "soften=0.25", "-o", out, "-q")
    assert done.returncode == 0, done.stderr
    states = [read_folder(Path(model)) for model in models]
    for name, tensor in read_folder(out).items():
        values = torch.stack([state[name] for state in states])
        wanted = 0.75 * values.median(0).values + 0.25 * values.mean(0)
        torch.testing.assert_close(tensor, wanted)
    (group,) = json.loads((out / "merge_manifest.json").read_text())["output"]["groups"]
    assert group["strategy"] == "median_merge:Median" and group["parameters"] == {"soften": 0.25}
    for command in (("verify", out, "--inputs"), ("reproduce", out)):
        done = run(installed, *command)
        assert done.returncode == 0, (command, done.stderr)


def test_an_installed_strategy_is_listed_and_described(installed: Path) -> None:
    assert "median" in run(installed, "methods").stdout
    assert "soften (float, default 0.0, in [0, 1])" in run(installed, "methods", "median").stdout


def test_a_merge_by_an_own_object_is_reproduced_where_its_package_is(installed: Path, tmp_path: Path) -> None:
    models = write_models(tmp_path, 2)
    script = (
        "import sys; from merge_models.merge import merge; from median_merge import Median\n"
        "merge(sys.argv[1:3], Median(soften=0.5), out=sys.argv[3])"
    )
    paths = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, *models, str(tmp_path / "out")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths}, timeout=120)
    record = json.loads((tmp_path / "out/merge_manifest.json").read_text())
    assert record["recipe"]["merge_method"] == "median_merge:Median"
    assert run(installed, "reproduce", tmp_path / "out").returncode == 0
    elsewhere = run(tmp_path, "reproduce", tmp_path / "out")
    assert elsewhere.returncode == 2 and "unknown strategy class 'median_merge:Median'" in elsewhere.stderr


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points that packages offer, as a list to fill."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry._offered.cache_clear()
    yield points
    registry._offered.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "asked", "words"),
    [
        (
            "broken",
            "no_such_module:Thing",
            "broken",
            "'broken': no_such_module:Thing cannot be imported",
        ),
        ("broken", "json:no_such", "broken", "'broken': json:no_such cannot be imported: AttributeError"),
        (
            "thing",
            "json:JSONDecoder",
            "thing",
            "'thing': json:JSONDecoder is no subclass of Abs",
        ),
        (
            "ties",
            "tests.merge.toys:Halved",
            "ties",
            "'ties' is claimed by .*strategies.ties:Ties and tests.merge.toys:Halved; uninstall",
        ),
        ("other", "json:loads", "halved", "unknown merge method 'halved'; known:|did you mean"),
        ("other", "json:loads", "os:system", "unknown strategy class 'os:system'; install the package"),
    ],
)
def test_what_is_wrong_with_an_entry_point_is_one_line(
    name: str, value: str, asked: str, words: str, offered: list[EntryPoint]
) -> None:
    offered.append(EntryPoint(name, value, registry.GROUP))
    with pytest.raises(RecipeError, match=words) as told:
        find_strategy(asked)
    assert "\n" not in str(told.value)


def test_methods_tell_of_packages_that_cannot_be_used(offered: list[EntryPoint]) -> None:
    offered += [EntryPoint("halved", "tests.merge.toys:Halved", registry.GROUP)]
    offered += [EntryPoint("broken", "no_such_module:Thing", registry.GROUP)]
    text = describe_all()
    assert "\nhalved " in text and "merge method 'broken': no_such_module:Thing cannot be imported" in text


def test_two_packages_may_not_share_a_name(offered: list[EntryPoint], tmp_path: Path) -> None:
    for value in ("tests.merge.toys:Halved", "tests.merge.toys:Split"):
        offered.append(EntryPoint("mine", value, registry.GROUP))
    with pytest.raises(RecipeError, match="'mine' is claimed by .*toys:Halved and .*toys:Split"):
        find_strategy("mine")
    assert find_strategy("tests.merge.toys:Split").name == "split"
    (model,) = write_models(tmp_path, 1)
    recipe = {"merge_method": "mine", "models": [{"model": model}]}
    from merge_models.merge import run_recipe

    with pytest.raises(RecipeError, match="is claimed by"):
        run_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_s_own_have_their_names() -> None:
    for kind in STRATEGIES:
        assert strategy_name(kind) == kind.name and find_strategy(kind.name) is kind
        assert find_strategy(f"{kind.__module__}:{kind.__qualname__}") is kind


def test_names_in_recipes_import_nothing(tmp_path: Path) -> None:
    (model,) = write_models(tmp_path, 1)
    with pytest.raises(RecipeError, match="recipes import no module"):
        merge([model], Linear(), out=tmp_path / "out", planned=lambda _: find_strategy("antigravity:x"))
    assert "antigravity" not in sys.modules
