"""Recipes: mergekit's dialect read strictly, the same made in Python, and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from merge_models.merge import (
    CheckpointError,
    MergeError,
    MergeResult,
    Recipe,
    RecipeError,
    load_recipe,
    merge,
    prepare,
    run_recipe,
)
from merge_models.merge.checkpoint import parse_dtype
from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.errors import did_you_mean, printable
from merge_models.merge.recipes.mergekit import METHODS
from merge_models.merge.recipes.recipe import parse_recipe, recipe_of
from merge_models.merge.recipes.strict_yaml import parse_yaml
from merge_models.merge.strategies import STRATEGIES, AbstractStrategy, Linear, TaskArithmetic
from merge_models.merge.strategies.families.weights import NOT_DIVIDED
from tests.helpers import (
    assert_same_bits,
    listing,
    merge_states,
    read_folder,
    tensors,
    write_folder,
    write_models,
)

BASIC = "models: [{model: a}, {model: b}]\nmerge_method: linear\n"


def refusal(tmp_path: Path, text: str | bytes) -> str:
    """How a recipe is refused: in one line that begins with its file."""
    file = tmp_path / "recipe.yml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message and len(message) < 1500, message
    return message.removeprefix(f"{file}: ")


# What is refused

NOT_YAML = {
    "a tab": "\t",
    "cut": "{",
    "two colons": "a: b: c",
    "bytes": b"\xff\xfe\xfd",
    "control characters": "a: \x01",
    "an unknown alias": "a: *x\n",
    "python objects": "a: !!python/object/apply:os.system [id]",
    "an unknown tag": "a: !x 1",
    "a wrong boolean": "a: !!bool x",
    "a wrong number": "a: !!int x",
    "a wrong float": "a: !!float x",
    "a wrong date": "a: 2020-13-45",
    "a wrong timestamp": "a: !!timestamp x",
    "wrong binary": "a: !!binary x",
    "too long a number": "a: " + "9" * 5000,
    "deep nesting": "[" * 2000,
    "a key twice": "a: 1\nb: 2\na: 3",
    "an inner key twice": BASIC + "parameters: {weight: 1, weight: 2}",
    "a list as key": "? [1, 2]\n: 3",
    "a map as key": "{a: 1}: 2",
}


@pytest.mark.parametrize("case", NOT_YAML)
def test_what_is_not_yaml(case: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, NOT_YAML[case]).startswith("not valid YAML")


NOT_RECIPES: dict[str, tuple[str, list[str]]] = {
    "nothing": ("", ["merge_method and models"]),
    "only a comment": ("# hello", ["merge_method and models"]),
    "a word": ("linear", ["merge_method and models"]),
    "a list": ("[a, b]", ["merge_method and models"]),
    "no method": ("models: [a, b]", ["'merge_method' is missing"]),
    "no models": ("merge_method: linear", ["models"]),
    "models are null": ("merge_method: linear\nmodels:", ["models"]),
    "models are empty": ("merge_method: linear\nmodels: []", ["models"]),
    "models are a word": ("merge_method: linear\nmodels: abc", ["'models'", "list"]),
    "models are a number": ("merge_method: linear\nmodels: 5", ["'models'", "list"]),
    "a model is a number": ("merge_method: linear\nmodels: [5]", ["models", "5"]),
    "a model is null": ("merge_method: linear\nmodels: [{model: }]", ["models.0.model"]),
    "a model without name": ("merge_method: linear\nmodels: [{}]", ["models.0.model", "missing"]),
    "a model's unknown key": (
        "merge_method: linear\nmodels: [{model: a, wieght: 1}]",
        ["'wieght'", "known:"],
    ),
    "a model's key, misspelt": ("merge_method: linear\nmodels: [{modle: a}]", ["'modle'", "'model'?"]),
    "a model's parameters": (
        "merge_method: linear\nmodels: [{model: a, parameters: [1]}]",
        ["parameters", "a map"],
    ),
    "base is a number": (BASIC + "base_model: 5", ["'base_model'"]),
    "base is a map": (BASIC + "base_model: {x: 1}", ["'base_model.model'"]),
    "parameters are a number": (BASIC + "parameters: 5", ["'parameters'", "a map"]),
    "parameters by number": (BASIC + "parameters: {1: 2}", ["'parameters"]),
    "seed is a word": (BASIC + "seed: abc", ["'seed'", "integer"]),
    "seed is a fraction": (BASIC + "seed: 1.5", ["'seed'", "integer"]),
    "dtype is a number": (BASIC + "dtype: 16", ["'dtype'", "string"]),
    "dtype is a list": (BASIC + "dtype: [a]", ["'dtype'", "string"]),
    "nothing to merge": (BASIC + "only: []", ["only: is empty"]),
    "an empty module": (
        "merge_method: linear\nmodules: {a: {}}",
        ["modules: a: give either models or slices"],
    ),
    "a module of both": (
        "merge_method: linear\nmodules: {a: {models: [{model: b}], slices: [{sources: []}]}}",
        ["modules: a: give either models or slices"],
    ),
    "another architecture": (
        "merge_method: linear\nmodels: [{model: {model: {path: a}, override_architecture: B}}]",
        ["'models.0.model'", "override_architecture", "matched by their names", "remove it"],
    ),
    "a token that is null": (BASIC + "tokenizer: {tokens: {a: }}", ["'tokenizer.tokens.a'"]),
    "an unknown key": (BASIC + "dtyp: float16", ["unknown key 'dtyp'", "did you mean 'dtype'?"]),
    "an unknown number": (BASIC + "1: 2", ["unknown key '1'", "known:", "merge_method"]),
    "an unknown null": (BASIC + "~: 2", ["unknown key 'None'"]),
    "half a surrogate": (BASIC + '"\\ud800": 1', ["unknown key", r"\xd800"]),
    "an escape": (BASIC + '"\\e[2J\\n": 1', ["unknown key", r"\x1b[2J\x0a"]),
    "an endless key": (BASIC + f"{'k' * 900}: 1", ["unknown key 'kkk", "…"]),
    "a method of control characters": (BASIC.replace("linear", '"\\e"'), [r"\x1b"]),
    "an unknown method": (BASIC.replace("linear", "liner"), ["'liner'", "did you mean 'linear'?"]),
}


@pytest.mark.parametrize("case", NOT_RECIPES)
def test_what_is_no_recipe(case: str, tmp_path: Path) -> None:
    text, words = NOT_RECIPES[case]
    message = refusal(tmp_path, text)
    for word in words:
        assert word in message, message


WRONG_PARAMETERS: dict[str, tuple[str, list[str]]] = {
    "an unknown one": (
        "parameters: {weigth: 1}",
        ["linear has no parameter 'weigth'", "did you mean 'weight'?", "linear has normalize, weight"],
    ),
    "nobody's": ("parameters: {zzz: 1}", ["no parameter 'zzz'", "known: normalize, weight"]),
    "another's that mergekit has not": ("parameters: {origin: zero}", ["no parameter 'origin'"]),
    "a word": ("parameters: {weight: heavy}", ["'weight' takes a number", "'heavy'"]),
    "a boolean": ("parameters: {weight: true}", ["'weight' takes a number", "True"]),
    "not a number": ("parameters: {weight: .nan}", ["'weight'", "finite", "nan"]),
    "infinity": ("parameters: {weight: -.inf}", ["'weight'", "finite", "-inf"]),
    "an enormous one": ("parameters: {weight: 1e300}", ["'weight'", "within 1e30"]),
    "an enormous whole one": ("parameters: {weight: 0x" + "f" * 900 + "}", ["'weight'", "within 1e30"]),
    "a map": ("parameters: {weight: {a: 1}}", ["'weight'", "filter"]),
    "a list of words": ("parameters: {weight: [a, 1]}", ["'weight'"]),
    "an empty list": ("parameters: {weight: []}", ["'weight'", "empty"]),
    "no boolean": ("parameters: {normalize: maybe}", ["'normalize' takes true or false", "'maybe'"]),
    "weights without sum": ("parameters: {weight: 0}", ["sum to zero", "normalize: false"]),
}


@pytest.mark.parametrize("case", WRONG_PARAMETERS)
def test_wrong_parameters_are_known_before_anything_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_folder(tmp_path / name, tensors(0))
    text, words = WRONG_PARAMETERS[case]
    (tmp_path / "r.yml").write_text(BASIC + text)
    before = listing(tmp_path)
    for call in (lambda: prepare("r.yml"), lambda: run_recipe("r.yml", "out")):
        with pytest.raises(RecipeError) as caught:
            call()
        for word in words:
            assert word in str(caught.value), caught.value
        assert "\n" not in str(caught.value)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("method", "own", "shared"),
    [("unit_mean", {"per": "row"}, {}), ("ties", {"scope": "model"}, {}), ("nearswap", {"t": 0.1}, {})],
)
def test_parameters_that_are_one_for_all_are_not_given_to_a_model(
    method: str, own: dict[str, Any], shared: dict[str, Any], tmp_path: Path
) -> None:
    base, path = write_models(tmp_path, 2)
    recipe = {"merge_method": method, "models": [{"model": path, "parameters": own}], "parameters": shared}
    with pytest.raises(RecipeError, match=f"'{next(iter(own))}' of {method} is one for all models: give it"):
        prepare(parse_recipe(recipe | {"base_model": base}))


def test_large_recipes_cost_little(tmp_path: Path) -> None:
    started = time.process_time()
    assert "unknown key" in refusal(tmp_path, "{" + ",".join(f"k{n}: 1" for n in range(3000)) + "}")
    assert "larger than" in refusal(tmp_path, "#" * (5 << 20))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", ["nothing.yml", ".", "x" * 300])
def test_recipes_that_cannot_be_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(name)


# What is understood


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("models: [m0, m1]", (0.5, 0.5)),
        ("models: [{model: m0}, m1]\nparameters:", (0.5, 0.5)),
        ("models: [{model: m0, parameters: {weight: 3}}, {model: m1}]", (0.75, 0.25)),
        ("models: [{model: m0, parameters: {weight: 3}}, m1]\nparameters: {weight: 2}", (0.6, 0.4)),
        (
            "models: [{model: m0, parameters: {weight: 1e-3}}, {model: m1, parameters: {weight: .003}}]",
            (0.25, 0.75),
        ),
        ("models: [m0, m1]\nparameters: {weight: 0.2, normalize: false}", (0.2, 0.2)),
        ("models: [m0, m1]\nparameters: {weight: 0.2, normalize: off}", (0.2, 0.2)),
        ("models: [m0, m1]\nparameters: {weight: 0.2, normalize: 0}", (0.2, 0.2)),
        ("models: [m0, m1]\nparameters: {weight: }\nbase_model:\nslices:\ntokenizer_source:", (0.5, 0.5)),
        ("models: [m0, m0, m1, m1]\nseed: 5", (0.25, 0.25, 0.25, 0.25)),
    ],
)
def test_dialect(
    text: str, weights: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yml").write_text(f"\ufeff# a comment\nmerge_method: linear\ndtype: float64\n{text}\n")
    run_recipe("r.yml", "out")
    names = ["m0", "m1"] if len(weights) == 2 else ["m0", "m0", "m1", "m1"]
    parts = [read_folder(tmp_path / name) for name in names]
    for name, tensor in read_folder(tmp_path / "out").items():
        exact = sum(weight * part[name].double() for weight, part in zip(weights, parts, strict=True))
        assert float((tensor - exact).abs().max()) < 1e-14


@pytest.mark.parametrize("where", ["dtype", "out_dtype", "both"])
def test_output_dtype(where: str, tmp_path: Path) -> None:
    keys = {"dtype": "float32", "out_dtype": "bfloat16"} if where == "both" else {where: "bfloat16"}
    recipe = parse_recipe({"merge_method": "linear", "models": write_models(tmp_path, 2), **keys})
    run_recipe(recipe, tmp_path / "out")
    assert {str(t.dtype) for t in read_folder(tmp_path / "out").values()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("bf16", "BF16"), ("bfloat16", "BF16"), ("torch.bfloat16", "BF16"), ("BF16", "BF16"), ("fp16", "F16"),
        ("half", "F16"), ("float", "F32"), ("fp32", "F32"), ("double", "F64"), ("f64", "F64"),
        ("fp8", "F8_E4M3"), ("float8_e5m2", "F8_E5M2"), ("float8_e4m3fn", "F8_E4M3"),
    ],
)  # fmt: skip
def test_words_for_dtypes(word: str, code: str) -> None:
    assert parse_dtype(word) is BY_CODE[code]


@pytest.mark.parametrize(
    "word", ["int8", "bool", "bf17", "auto", "", "torch.", "complex64", "float4", "\x1b"]
)
def test_words_for_no_dtype(word: str) -> None:
    with pytest.raises(RecipeError, match="unknown dtype"):
        parse_dtype(word)


def test_a_base_among_the_models_is_not_merged_with_itself(tmp_path: Path) -> None:
    base, one, two = write_models(tmp_path, 3)
    results = []
    for number, models in enumerate([[one, two], [base, one, two], [one, two, base]]):
        recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": models}
        run_recipe(parse_recipe({**recipe, "parameters": {"weight": 0.5}}), tmp_path / f"out{number}")
        results.append(read_folder(tmp_path / f"out{number}"))
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert_same_bits(other[name], tensor, name)


@pytest.mark.parametrize("spelling", ["{0}/", "{0}/.", "{0}/../m0", "relative", "link"])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [("dare_linear", {"normalize": True}), ("slerp", {"t": 0.3}), ("norm_mean", {"origin": "base"})],
)
def test_a_model_under_two_names_is_one_model(
    method: str,
    parameters: dict[str, Any],
    spelling: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, one = write_models(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(base)
    other = {"relative": "m0", "link": str(tmp_path / "link")}.get(spelling, spelling.format(base))
    results = []
    for name, listed in (("same", base), ("other", other)):
        recipe = {"merge_method": method, "base_model": base, "models": [listed, one]}
        run_recipe(parse_recipe({**recipe, "parameters": parameters}), tmp_path / name)
        results.append(read_folder(tmp_path / name))
    for name, tensor in results[0].items():
        assert_same_bits(results[1][name], tensor, name)


# Python and back


@pytest.mark.parametrize(
    "strategy",
    [Linear(), Linear(weight=(3.0, -1.0)), TaskArithmetic(weight=(0.1, 0.7), lambda_=1.5), TaskArithmetic()],
    ids=str,
)
def test_recipes_from_python_make_the_same_as_in_memory(strategy: AbstractStrategy, tmp_path: Path) -> None:
    base, *paths = write_models(tmp_path, 3)
    base = base if isinstance(strategy, TaskArithmetic) else None
    recipe = recipe_of(strategy, paths, base, "bfloat16", seed=3)
    assert parse_recipe(yaml.safe_load(recipe.yaml())) == recipe
    assert parse_recipe(recipe.document()) == recipe
    run_recipe(recipe, tmp_path / "out")
    parents = [read_folder(Path(path)) for path in paths]
    base_state = None if base is None else read_folder(Path(base))
    expected = merge_states(parents, strategy, base=base_state, dtype="bfloat16", seed=3)
    for name, tensor in read_folder(tmp_path / "out").items():
        assert_same_bits(tensor, expected[name], name)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.name)
def test_every_parameter_of_every_strategy_is_described_and_checked(kind: type[AbstractStrategy]) -> None:
    for parameter in parameters_of(kind).values():
        assert parameter.doc and "\n" not in parameter.doc and parameter.range_text()
        default = parameter.default
        if not isinstance(default, tuple):
            assert parameter.check(default) == default
        with pytest.raises(RecipeError, match=f"'{parameter.name}'"):
            parameter.check(object())
        if parameter.kind in (float, int):
            for value in (float("nan"), float("inf"), 1e31, 10**400, "x", [1]):
                with pytest.raises(RecipeError, match=f"'{parameter.name}'"):
                    parameter.check(value)


@pytest.mark.parametrize("word", [True, 1, 1.0, "true", "True", "yes", "on", np.float64(1)])
@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind.name in METHODS], ids=lambda k: k.name)
def test_booleans_in_any_form(kind: type[AbstractStrategy], word: Any) -> None:
    """Also those of word parameters, such as rescale, that recipes may give as booleans."""
    no = {"true": "false", "True": "False", "yes": "no", "on": "off"}.get(word, type(word)(0))
    for parameter in parameters_of(kind).values():
        if parameter.kind is bool or parameter.flags:
            flags = parameter.flags or (False, True)
            assert (parameter.check(no), parameter.check(word)) == flags
            for wrong in (2, 0.5, "maybe", "1e0", None, [True]):
                with pytest.raises(RecipeError, match=f"'{parameter.name}' takes"):
                    parameter.check(wrong)


EMPTY_KEYS = """
merge_method: linear
slices:
  - {sources: [{model: {model: {path: a, revision: }, lora: , override_architecture: }, layer_range: [0, 1],
      parameters: }], base_model: , residual_weight: , parameters: }
tokenizer: {source: , tokens: , pad_to_multiple_of: }
only:
"""


def test_keys_without_values_count_as_absent() -> None:
    sources = [{"model": "a", "layer_range": [0, 1]}]
    wanted = {"merge_method": "linear", "slices": [{"sources": sources}], "tokenizer": {}}
    assert parse_recipe(yaml.safe_load(EMPTY_KEYS)) == parse_recipe(wanted)


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"])
@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0), (0.1, 0.2, -0.3)])
def test_weights_that_cancel_out_take_task_vectors_from_each_other(
    method: str, weights: tuple[float, ...], tmp_path: Path
) -> None:
    """mergekit divides by 1 where ``normalize`` would divide by zero; so does this, and the plan tells."""
    base, *paths = write_models(tmp_path, 1 + len(weights))
    entries = [{"model": p, "parameters": {"weight": w}} for p, w in zip(paths, weights, strict=True)]
    recipe: dict[str, Any] = {"merge_method": method, "base_model": base, "models": entries}
    divided = parse_recipe({**recipe, "parameters": {"normalize": True}})
    prepared = prepare(divided)
    assert NOT_DIVIDED in prepared.plan.remarks
    prepared.close()
    for name, made in ("divided", divided), ("whole", parse_recipe(recipe)):
        run_recipe(made, tmp_path / name)
    whole = read_folder(tmp_path / "whole")
    for name, tensor in read_folder(tmp_path / "divided").items():
        assert_same_bits(tensor, whole[name], name)


def test_one_end_of_a_gradient_may_cancel_out(tmp_path: Path) -> None:
    base, first, second = write_models(tmp_path, 3)
    entries = [{"model": first, "parameters": {"weight": [1, 1]}}, {"model": second}]
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": entries}
    parameters = {"weight": [-1, 1], "normalize": True}
    prepared = prepare(parse_recipe({**recipe, "parameters": parameters}))
    assert [remark for remark in prepared.plan.remarks if remark == NOT_DIVIDED] == [NOT_DIVIDED]


MISUSES: dict[str, tuple[dict[str, Any], str]] = {
    "no models": ({"models": []}, "no models"),
    "a word for a strategy": ({"strategy": "linear"}, "such as Linear"),
    "too many weights": ({"strategy": Linear(weight=(1.0, 2.0, 3.0))}, "'weight' has 3 values for 2 models"),
    "no output": ({"out": None}, "out=FOLDER"),
    "an unknown policy": ({"on_nonfinite": "ignore"}, "'error' or 'keep'"),
    "an unknown dtype": ({"dtype": "float17"}, "unknown dtype 'float17'"),
    "paths with state dicts": ({"base": tensors(0)}, "all of one kind"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_from_python_is_told_in_words(case: str, tmp_path: Path) -> None:
    changes, words = MISUSES[case]
    arguments: dict[str, Any] = {"models": write_models(tmp_path, 2), "out": tmp_path / "out", **changes}
    with pytest.raises(MergeError, match=words):
        merge(**arguments)
    assert not (tmp_path / "out").exists()


def test_state_dicts_that_are_none() -> None:
    for value, words in [
        (torch.ones(2, dtype=torch.complex64), "'x' is torch.complex64"),
        (torch.ones(2, 2).to_sparse(), "not supported"),
        (torch.ones(2, device="meta"), "meta device"),
        (3.0, "'x' is no tensor"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            merge_states([{"x": value}, {"x": value}])  # type: ignore[dict-item]


def test_results_say_what_was_done(tmp_path: Path) -> None:
    paths, written = write_models(tmp_path, 2), []
    result = merge(paths, out=tmp_path / "out", dtype="bfloat16", progress=written.append)
    assert isinstance(result, MergeResult)
    count = sum(t.numel() for t in tensors(0).values())
    assert (result.path, result.bytes_read, result.bytes_written) == (tmp_path / "out", 8 * count, 2 * count)
    assert sum(written) == result.bytes_written and result.seconds > 0


def test_recipes_cannot_be_changed() -> None:
    recipe = parse_recipe({"merge_method": "linear", "models": ["a", "b"]})
    assert isinstance(recipe, Recipe)
    with pytest.raises(Exception, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


# Words


def test_plain_values_from_yaml() -> None:
    assert parse_yaml("{a: 1, b: [x, 1.5, true, null]}") == {"a": 1, "b": ["x", 1.5, True, None]}


ALIASES = """
models:
  - model: a
    parameters: &own {weight: &half 0.5, density: [0.3, 0.9]}
  - model: b
    parameters: *own
  - model: c
    parameters: {<<: *own, weight: 0.25}
merge_method: ties
base_model: &base d
tokenizer: {source: *base}
parameters: {lambda: *half}
"""


def test_aliases_are_what_they_stand_for(tmp_path: Path) -> None:
    """As in mergekit; and once read they are gone."""
    (tmp_path / "recipe.yml").write_text(ALIASES)
    recipe = load_recipe(tmp_path / "recipe.yml")
    own = {"weight": 0.5, "density": [0.3, 0.9]}
    assert recipe.document() == {
        "merge_method": "ties",
        "models": [
            {"model": "a", "parameters": own},
            {"model": "b", "parameters": own},
            {"model": "c", "parameters": {**own, "weight": 0.25}},
        ],
        "base_model": "d",
        "parameters": {"lambda": 0.5},
        "tokenizer": {"source": "d"},
    }
    assert "&" not in recipe.yaml() and "*" not in recipe.yaml()
    (tmp_path / "plain.yml").write_text(recipe.yaml())
    assert load_recipe(tmp_path / "plain.yml") == recipe


YAML_FORMS = {
    "a: &x {p: 1}\nc: &y {<<: *x, p: 2}\nb: {<<: [*x, *y], q: 3}": {
        "a": {"p": 1}, "c": {"p": 2}, "b": {"p": 1, "q": 3}
    },
    "x: {e: &e {<<: {k: 1}, k: 2}}\ny: {<<: *e, k: 3}": {"x": {"e": {"k": 2}}, "y": {"k": 3}},
    "x: &x k\n? *x\n: 1": {"x": "k", "k": 1},
    "a: &a\nb: *a": {"a": None, "b": None},
}  # fmt: skip


@pytest.mark.parametrize("text", YAML_FORMS)
def test_aliases_and_merged_maps_mean_what_yaml_says(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text) == YAML_FORMS[text]


@pytest.mark.parametrize(
    ("word", "known", "text"),
    [
        ("liner", ["linear", "ties"], "; did you mean 'linear'?"),
        ("zzz", ["linear", "ties"], "; known: linear, ties"),
        ("zzz", [], ""),
    ],
)
def test_suggestions(word: str, known: list[str], text: str) -> None:
    assert did_you_mean(word, known) == text


def test_printable_text_is_one_bounded_line() -> None:
    assert printable("a\n\x1b\u202e\udcff") == r"a\x0a\x1b\x202e\xdcff"
    assert printable("x" * 500, 10) == "x" * 10 + "…"
    assert printable("ünïcode 層 🙂") == "ünïcode 層 🙂"
