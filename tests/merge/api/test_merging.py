"""The Python API as callers meet it: reasonable values in other types, one family of errors for the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml

from merge_models.evals import Activations, Running, TextSample, Weights, evaluate
from merge_models.evals.inspect import inspect_parents
from merge_models.evals.measures.activations.modules import diagnose_modules
from merge_models.evals.measures.weights.diagnose import diagnose_parents
from merge_models.evals.repairs import repair, repair_module
from merge_models.merge import MergeError, Recipe, load_recipes, merge, prepare, run_recipe, run_recipes, soup
from merge_models.merge.api.reproduce import reproduce
from merge_models.merge.publishing.verify import verify
from merge_models.merge.recipes.recipe import ModelEntry
from merge_models.merge.strategies import DareLinear, Linear
from tests.helpers import assert_same_bits, merge_folders, read_folder, tensors, write_models

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "seed of words": ({"seed": "a"}, r"seed is a whole number from -2\^63 to 2\^63 - 1, not 'a'"),
    "seed of a fraction": ({"seed": 1.5}, "seed is a whole number .* not 1.5"),
    "seed too large": ({"seed": 1 << 65}, "seed is a whole number .* not 36893488147419103232"),
    "seed too small": ({"seed": -(1 << 63) - 1}, "seed is a whole number"),
    "seed of truth": ({"seed": True}, "seed is a whole number .* not True"),
    "no seed": ({"seed": None}, "seed is a whole number .* not None"),
    "negative threads": ({"threads": -1}, "threads is a whole number from 1 to 1024, or None .* not -1"),
    "no threads": ({"threads": 0}, "threads is a whole number .* not 0"),
    "threads of a fraction": ({"threads": 2.5}, "threads is a whole number .* not 2.5"),
    "threads of words": ({"threads": "2"}, "threads is a whole number .* not '2'"),
    "too many threads": ({"threads": 10**9}, "threads is a whole number"),
    "dtype of whole numbers": ({"dtype": torch.int8}, "unknown dtype '(torch.)?int8'"),
    "dtype of another kind": ({"dtype": 3}, "unknown dtype '3'"),
    "rounding of a list": ({"rounding": ["nearest"]}, "rounding is 'nearest' or 'stochastic', not"),
    "weights of words": ({"strategy": Linear(weight=("a", "b"))}, "'weight' takes a number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_odd_values_are_told_alike_on_disk_and_in_memory(case: str, tmp_path: Path) -> None:
    options, words = BAD[case]
    options = {"strategy": Linear(), **options}
    paths, out = write_models(tmp_path, 2), tmp_path / "out"
    given: list[Callable[[], Any]] = [
        lambda: merge(paths, **options, out=out),
        lambda: merge([tensors(0), tensors(1)], **options),
    ]
    for call in given:
        with pytest.raises(MergeError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    "options", [{"dtype": torch.bfloat16}, {"seed": np.int64(7)}, {"threads": np.int32(1)}], ids=str
)
def test_values_of_torch_and_numpy_are_values(options: dict[str, Any], tmp_path: Path) -> None:
    *paths, base = write_models(tmp_path, 3)
    plain = {key: "bfloat16" if key == "dtype" else int(value) for key, value in options.items()}
    strategy = DareLinear(density=0.5)
    found = merge_folders(paths, tmp_path / "found", strategy, base=base, **options)
    wanted = merge_folders(paths, tmp_path / "wanted", strategy, base=base, **plain)
    held = merge([read_folder(Path(p)) for p in paths], strategy, base=read_folder(Path(base)), **options)
    for name, tensor in wanted.items():
        assert_same_bits(found[name], tensor, name)
        assert_same_bits(held[name], tensor, name)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "'merge_method' is missing"),
        ({"merge_method": "linear"}, "give exactly one of models, slices, modules"),
        ({"merge_method": "liner", "models": [{"model": "a"}]}, "did you mean 'linear'"),
        (
            {"merge_method": "linear", "models": [{"model": "a"}], "seed": "x"},
            "'seed' should be a valid integer",
        ),
        ({"merge_method": "linear", "models": [{"modl": "a"}]}, r"'models\.0\.model' is missing"),
        ({"merge_method": "linear", "models": [{"model": "a"}], "wieghts": 1}, "'wieghts' is no key"),
        ({"merge_method": "linear", "models": "abc"}, "'models' should be a list"),
    ],
)
def test_recipes_built_wrongly_in_python(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MergeError, match=words) as caught:
        Recipe(**fields)
    assert "\n" not in str(caught.value)


def test_an_entry_built_wrongly_in_python() -> None:
    with pytest.raises(MergeError, match="'model' should be a valid string"):
        ModelEntry(model=3)  # type: ignore[arg-type]


def test_recipes_come_as_objects_dicts_and_paths(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    plain = {"merge_method": "linear", "models": [{"model": Path(paths[0])}, paths[1]]}
    written = {"merge_method": "linear", "models": list(paths)}
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(written))
    for number, recipe in enumerate((plain, written, file, str(file), *load_recipes(file))):
        run_recipe(recipe, str(tmp_path / f"out{number}"))
        found, first = read_folder(tmp_path / f"out{number}"), read_folder(tmp_path / "out0")
        assert all(torch.equal(found[name], first[name]) for name in first)
        prepare(recipe).close()
    for recipe in (load_recipes(file), [written, written], 3, None, b"recipe.yml"):
        with pytest.raises(MergeError, match="a recipe is a Recipe, a dict or a path, not"):
            run_recipe(recipe, tmp_path / "never")  # type: ignore[arg-type]
    with pytest.raises(MergeError, match="did you mean 'models'"):
        run_recipe({"merge_method": "linear", "model": list(paths)}, tmp_path / "never")


def test_several_recipes_come_as_objects_dicts_and_paths(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    steps = [
        {"name": "half", "merge_method": "linear", "models": list(paths)},
        {"merge_method": "linear", "models": ["half", paths[0]]},
    ]
    file = tmp_path / "recipes.yml"
    file.write_text(yaml.safe_dump_all(steps))
    given: list[Any] = [steps, file, str(file), load_recipes(file), iter(steps)]
    for number, recipes in enumerate(given):
        made = run_recipes(
            recipes, str(tmp_path / f"out{number}"), intermediate_dir=str(tmp_path / "between")
        )
        assert [step.target for step in made] == [tmp_path / "between/half", tmp_path / f"out{number}"]
        assert verify(tmp_path / f"out{number}").problems == ()
    assert len(run_recipes(steps[0], tmp_path / "one")) == 1  # type: ignore[arg-type]
    for recipes, words in (
        ([], "there are no recipes"),
        ([steps[1], steps[1]], "recipe 1: has no 'name'"),
        ([steps[0], 3], "a recipe is a Recipe, a dict or a path, not 3"),
    ):
        with pytest.raises(MergeError, match=words):
            run_recipes(recipes, tmp_path / "never")  # type: ignore[arg-type]


def test_the_last_of_several_recipes_is_measured_against_the_earlier_ones(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 3)
    steps = [
        {"name": "half", "merge_method": "linear", "models": paths[:2]},
        {
            "merge_method": "slerp",
            "base_model": "half",
            "parameters": {"t": 0.5},
            "models": ["half", paths[2]],
        },
    ]
    run_recipes(steps, tmp_path / "out", intermediate_dir=tmp_path / "between")
    found = evaluate(tmp_path / "out", measures=Weights())
    assert [parent.name for parent in found.parents] == ["half", "m2"]
    shutil.rmtree(tmp_path / "between")
    with pytest.raises(MergeError, match="between/half: no such file or folder"):
        evaluate(tmp_path / "out", measures=Weights())


@pytest.mark.parametrize("out", [3, b"out", "", [Path("out")]], ids=repr)
def test_an_output_that_is_no_path(out: Any, tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    for call in (lambda: merge(paths, out=out), lambda: run_recipes([], out)):
        with pytest.raises(MergeError, match=r"out is the path of a folder, not|there are no recipes"):
            call()
    assert not os.path.exists("out")


def test_other_places_take_the_same_threads(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    merge(paths, out=tmp_path / "out")
    calls: list[Callable[[Any], Any]] = [
        lambda threads: verify(tmp_path / "out", threads=threads),
        lambda threads: diagnose_parents(paths, threads=threads),
    ]
    for call in calls:
        with pytest.raises(MergeError, match="threads is a whole number from 1 to 1024"):
            call(0)


EVALUATIONS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "one parent": (lambda: {"parents": "m0"}, "parents is one model; give a list of them"),
    "a parent in memory": (
        lambda: {"parents": [{}]},
        "a parent is a folder or a Hub id, not dict; diagnose_modules",
    ),
    "a base in memory": (lambda: {"base": {}}, "the base is a folder or a Hub id, not dict"),
    "weights of words": (lambda: {"weights": "ab"}, "weights are numbers, one per parent, not 'ab'"),
    "too few weights": (lambda: {"weights": np.array([1.0])}, "1 weight for 2 parents"),
    "nothing measured": (lambda: {"measures": ()}, "cannot measure nothing"),
    "a word for a measure": (
        lambda: {"measures": "all"},
        r"cannot measure \['all'\]; there are Weights\(\), ",
    ),
    "a word among measures": (lambda: {"measures": [Weights(), "tasks"]}, r"cannot measure \['tasks'\]"),
    "a class for a measure": (lambda: {"measures": [Activations]}, r"cannot measure \[<class"),
    "negative seed": (lambda: {"running": Running(seed=-1)}, "seed is a whole number of 0 or more, not -1"),
    "fraction of a length": (
        lambda: {"text": TextSample(length=32.5)},  # type: ignore[arg-type]
        "length is a whole number of 1 or more, not 32.5",
    ),
    "tokens of words": (
        lambda: {"text": TextSample(tokens="8k")},  # type: ignore[arg-type]
        "tokens is a whole number of 1 or more, not '8k'",
    ),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluations_of_odd_values(case: str, tmp_path: Path) -> None:
    given, words = EVALUATIONS[case]
    paths = write_models(tmp_path, 2)
    merge(paths, out=tmp_path / "out")
    with pytest.raises(MergeError, match=words):
        evaluate(tmp_path / "out", **{"measures": (Weights(),), **given()})
    if "measure" not in case and "base" not in case:
        with pytest.raises(MergeError, match=words):
            repair(tmp_path / "out", **{"out": tmp_path / "repaired", **given()})


def test_evaluations_take_paths_generators_and_arrays(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 2)
    merge(paths, out=tmp_path / "out")
    odd: dict[str, Any] = {
        "parents": map(Path, paths),
        "weights": np.array([0.25, 0.75]),
        "running": Running(seed=cast("Any", np.int64(3))),
    }
    found = evaluate(tmp_path / "out", measures=Weights(), **odd)
    assert found.weights is not None and [parent.weight for parent in found.parents] == [0.25, 0.75]
    assert inspect_parents(path for path in paths).compatible  # type: ignore[arg-type]
    with pytest.raises(MergeError, match="parents is one model"):
        inspect_parents(paths[0])
    with pytest.raises(MergeError, match="the merge is a folder or a Hub id, not dict; diagnose_modules"):
        evaluate(tensors(0))  # type: ignore[arg-type]


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path, 2)
    (tmp_path / "recipe.yml").write_text("merge_method: linear\nmodels: [~/m0, ~/m1]\n")
    merge(["~/m0", "~/m1"], out="~/merged")
    run_recipe("~/recipe.yml", "~/made")
    run_recipes("~/recipe.yml", Path("~/again"))
    assert not verify("~/merged").problems and not reproduce("~/made").differences
    assert len(evaluate("~/again", measures=Weights()).parents) == 2
    assert not (tmp_path / "~").exists()


MODULES: dict[str, tuple[dict[str, Any], str]] = {
    "one parent": ({"parents": torch.nn.Sequential(torch.nn.Linear(4, 2))}, "parents is one model"),
    "one batch": ({"batches": torch.ones(8, 4)}, "batches is one batch; give a list of them"),
    "negative weights": ({"weights": [-1, 2]}, "must be finite, none negative, and one positive"),
    "weights that are none": ({"weights": [float("nan"), 1]}, "must be finite, none negative"),
    "too few weights": ({"weights": (1,)}, "1 weight for 2 parents; give one for each"),
}


@pytest.mark.parametrize("case", MODULES)
def test_odd_values_for_modules(case: str) -> None:
    options, words = MODULES[case]
    module, *parents = (torch.nn.Sequential(torch.nn.Linear(4, 2)) for _ in range(3))
    given: dict[str, Any] = {"parents": parents, "batches": [torch.ones(8, 4)], **options}
    for measure in (diagnose_modules, repair_module):
        with pytest.raises(MergeError, match=words):
            measure(module, **given)
    with pytest.raises(MergeError, match="seed is a whole number of 0 or more"):
        diagnose_modules(module, parents, batches=[torch.ones(8, 4)], seed=-1)
    batches = (torch.randn(8, 4) for _ in range(2))
    assert diagnose_modules(module, iter(parents), batches=batches).sites  # type: ignore[arg-type]


def test_values_that_are_not_finite_may_be_kept_in_memory_too() -> None:
    states = [{"w": torch.tensor([1.0, float("nan")])}, {"w": torch.ones(2)}]
    with pytest.raises(MergeError, match="on_nonfinite='keep'"):
        merge(states)
    kept = merge(states, on_nonfinite="keep")["w"]
    assert kept[0] == 1 and kept[1].isnan()
    with pytest.raises(MergeError, match="on_nonfinite is 'error' or 'keep', not 'drop'"):
        merge(states, on_nonfinite="drop")


def test_weights_of_a_soup_may_be_one_number_or_come_one_by_one() -> None:
    states = [tensors(0), tensors(1)]
    wanted, found = soup(states, weights=[0.25, 0.75]), soup(states, weights=iter([0.25, 0.75]))  # type: ignore[arg-type]
    plain, even = soup(states), soup(states, weights=0.5)  # type: ignore[arg-type]
    for name in wanted:
        assert torch.equal(found[name], wanted[name]) and torch.equal(even[name], plain[name])
