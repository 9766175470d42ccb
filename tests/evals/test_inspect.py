"""Parents before a merge: what stands in the way, and what the geometry advises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from merge_models.evals.inspect import inspect_parents
from merge_models.evals.report import to_markdown
from merge_models.evals.schema import Inspection
from merge_models.merge.cli import main
from merge_models.merge.errors import MergeError
from merge_models.merge.strategies import STRATEGIES
from tests.helpers import CONFIG, SHAPES, entry, tensors, write_folder, write_json, write_raw

State = dict[str, Tensor]
VOCABULARY = {"a": 0, "b": 1, "c": 2}


def tokenizer(vocab: Any = VOCABULARY, added: Any = ()) -> dict[str, str]:
    content = {"model": {"type": "WordLevel", "vocab": vocab}, "added_tokens": list(added)}
    return {"tokenizer.json": json.dumps(content)}


def names_of(found: Inspection) -> list[str]:
    return [name for name, _ in found.advice]


def family(
    count: int, spread: float, *, alike: float = 0.0, scales: tuple[float, ...] = ()
) -> tuple[list[State], State]:
    """Fine-tunes of one base: deltas of a relative norm, with a common part, scaled one by one."""
    base, common = tensors(100, shapes={"w": (60, 40)}), tensors(101, shapes={"w": (60, 40)})
    states = []
    for i in range(count):
        own = tensors(i, shapes={"w": (60, 40)})
        delta = (1 - alike) * own["w"] + alike * common["w"]
        scale = spread * (scales[i] if scales else 1.0)
        states.append({"w": base["w"] + scale * delta / delta.norm() * base["w"].norm()})
    return states, base


def test_parents_that_fit_are_compatible_and_described(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / f"m{i}", tensors(i), files=tokenizer()) for i in range(3)]
    found = inspect_parents(folders[:2], folders[2], weights=[3, 1])
    assert found.compatible and found.problems == ()
    assert [(m.name, m.role, m.weight) for m in found.models] == [
        ("m0", "parent", 0.75), ("m1", "parent", 0.25), ("m2", "base", None),
    ]  # fmt: skip
    assert found.models[0].parameters == sum(t.numel() for t in tensors(0).values())
    assert found.tensors is not None and [t.name for t in found.tensors] == sorted(SHAPES)
    assert all(t.norm is None and t.cosine is not None for t in found.tensors)
    assert found.delta_norms is not None and found.sign_conflict is not None and found.curvature is not None
    assert "m0" in to_markdown(found)
    assert Inspection.model_validate_json(found.to_json()) == found


def lacking(name: str) -> State:
    return {key: value for key, value in tensors(1).items() if key != name}


def reshaped(name: str, *shape: int) -> State:
    return {**tensors(1), name: torch.ones(shape)}


CONFLICTS: dict[str, tuple[State, Mapping[str, Any], dict[str, str], str, bool]] = {
    # the other model's tensors, its config's changes, its tokenizer; what is said, whether it blocks
    "missing": (lacking("model.norm.weight"), {}, tokenizer(), "m1 has no tensor 'model.norm.weight'", True),
    "extra": (
        {**tensors(1), "v.bias": torch.ones(2)}, {}, tokenizer(), "m0 has no tensor 'v.bias', which m1", True,
    ),
    "tied head": (lacking("lm_head.weight"), {}, tokenizer(), "m1 has no 'lm_head.weight'", False),
    "vocabulary": (
        reshaped("model.embed_tokens.weight", 13, 8), {}, tokenizer(), "11 rows in m0, 13 in m1", True,
    ),
    "shape": (
        reshaped("model.layers.0.mlp.up_proj.weight", 10, 8), {}, tokenizer(), "[12, 8] in m0, [10, 8]", True,
    ),
    "architecture": (tensors(1), {"model_type": "gpt2"}, tokenizer(), "type is llama in m0, gpt2", True),
    "heads": (tensors(1), {"num_attention_heads": 8}, tokenizer(), "num_attention_heads is 4 in m0", True),
    "rope": (tensors(1), {"rope_theta": 5e5}, tokenizer(), "rope_theta is 10000.0 in m0, 500000.0", False),
    "dtype": (tensors(1, torch.bfloat16), {}, tokenizer(), "m0 in float32, m1 in bfloat16", False),
    "ids": (
        tensors(1), {}, tokenizer({"a": 1, "b": 0, "c": 2}), "number 2 of 3 tokens differently ('a')", True,
    ),
    "more tokens": (
        tensors(1), {}, tokenizer(added=[{"id": 3, "content": "<x>"}]), "1 tokens of m1 are not in m0", False,
    ),
    "unigrams": (tensors(1), {}, tokenizer([["a", 0.0], ["c", -1.0]]), "number 1 of 3 tokens", True),
    "no tokenizer": (tensors(1), {}, {}, "m1 has no tokenizer", False),
    "other tokenizer": (tensors(1), {}, {"vocab.txt": "a\nb"}, "(tokenizer.json, vocab.txt)", False),
    "broken tokenizer": (tensors(1), {}, {"tokenizer.json": "{"}, "tokenizer.json", True),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFLICTS)
@pytest.mark.parametrize("as_base", [False, True], ids=["parent", "base"])
def test_what_stands_in_the_way_is_said(kind: str, as_base: bool, tmp_path: Path) -> None:
    state, changes, files, text, blocks = CONFLICTS[kind]
    ours = {**CONFIG, "num_attention_heads": 4, "rope_theta": 10000.0}
    first = write_folder(tmp_path / "m0", tensors(0), config=ours, files=tokenizer())
    other = write_folder(tmp_path / "m1", state, config={**ours, **changes}, files=files)
    models = ([first], other) if as_base else ([first, other], None)
    found = inspect_parents(*models, headers_only=True)
    assert any(text in line for line in found.problems), found.problems
    assert found.compatible is not blocks
    assert found.tensors is None and found.advice == ()
    assert inspect_parents(*models).tensors is not None  # what can be compared still is


def test_different_models_are_not_measured(tmp_path: Path) -> None:
    found = inspect_parents([tensors(0), {"other": torch.ones(3)}])
    assert not found.compatible and found.tensors is None
    assert any("they are different models" in line for line in found.problems)


def test_quantized_weights_are_named() -> None:
    packed = {"w": torch.zeros(40, 10, dtype=torch.uint8), "scale": torch.ones(40)}
    found = inspect_parents([packed, packed])
    assert not found.compatible and "91 % of its numbers as integers" in found.problems[0]


def test_values_that_are_not_finite_make_parents_incompatible() -> None:
    bad = tensors(1)
    bad["model.norm.weight"][2] = torch.nan
    found = inspect_parents([tensors(0), bad])
    assert not found.compatible
    assert found.problems == ("'model.norm.weight' of parent 2 has NaN or Inf; repair or replace that model",)
    assert found.cosine is not None


def test_headers_alone_need_no_torch_and_no_weights(tmp_path: Path) -> None:
    folders = [tmp_path / "m0", tmp_path / "m1"]
    for folder in folders:  # two gigabytes, by the header; a sparse file
        write_raw(folder / "model.safetensors", {"w": entry("F32", [1 << 15, 1 << 14], 0, 1 << 31)})
        with open(folder / "model.safetensors", "ab") as file:
            file.truncate(file.tell() + (1 << 31))
        write_json(folder / "config.json", CONFIG)
    script = (
        "import sys; from merge_models.evals import inspect_parents\n"
        f"found = inspect_parents({[str(f) for f in folders]!r}, headers_only=True)\n"
        "assert found.compatible, found.problems\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_near_siblings_are_flat_and_averaged() -> None:
    parents, _ = family(3, 0.01)
    found = inspect_parents(parents)
    assert names_of(found)[0] == "linear" and found.curvature == pytest.approx(0, abs=1e-3)
    assert "to rounding" in found.advice[0][1]


def test_far_parents_without_a_base_get_their_norm_back() -> None:
    parents, _ = family(3, 1.0)
    found = inspect_parents(parents)
    assert names_of(found) == ["norm_mean", "karcher", "linear"]
    assert found.curvature == pytest.approx(1 - (2 / 3) ** 0.5, abs=0.03)


def test_unrelated_deltas_are_added_and_brought_back() -> None:
    parents, base = family(3, 0.05)
    found = inspect_parents(parents, base)
    assert names_of(found) == ["task_arithmetic", "norm_mean", "ties", "linear"]
    reasons = dict(found.advice)
    assert "keeps 58%" in reasons["norm_mean"] and "as by chance" in reasons["ties"]
    assert found.delta_norms == pytest.approx((0.05,) * 3, rel=1e-3)
    assert found.sign_conflict == pytest.approx(0.75, abs=0.03)


def test_runs_of_one_task_are_averaged_first() -> None:
    parents, base = family(4, 0.05, alike=0.6)
    assert names_of(inspect_parents(parents, base))[:2] == ["linear", "model_stock"]


def test_deltas_of_different_sizes_are_averaged_by_direction() -> None:
    parents, base = family(3, 0.05, scales=(0.5, 1.0, 2.0))
    found = dict(inspect_parents(parents, base).advice)
    assert "unit_mean" in found and "4.0 times" in found["unit_mean"]


def test_an_outlier_is_named() -> None:
    twins, _ = family(3, 0.05)
    found = inspect_parents([*twins, tensors(77, shapes={"w": (60, 40)})])
    assert found.advice[0][0] == "karcher" and "parent 4" in found.advice[0][1]


def test_strangers_are_not_recommended_anything() -> None:
    found = inspect_parents([tensors(i) for i in range(3)])
    assert names_of(found) == ["linear"] and "nothing here fits" in found.advice[0][1]


def test_equal_parents_and_a_single_one_are_fine() -> None:
    parents, base = family(1, 0.05)
    same = inspect_parents([parents[0]] * 2, base)
    assert names_of(same)[0] == "linear" and same.curvature == 0
    assert inspect_parents(parents, base).advice == ()
    assert inspect_parents([base, base], base).advice[0][0] == "linear"


def test_advice_names_strategies_that_exist() -> None:
    found = {name for spread in (0.01, 0.3, 1.0) for name in names_of(inspect_parents(*family(3, spread)))}
    assert found and found <= {strategy.name for strategy in STRATEGIES}


@pytest.mark.parametrize(
    ("parents", "options", "message"),
    [
        ([], {}, "there are no parents"),
        (["/nowhere/at/all"], {}, "no such file"),
        ([tensors(0)], {"weights": [1, 2]}, "2 weights for 1 parent"),
    ],
)
def test_bad_input_is_a_message(parents: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        inspect_parents(parents, **options)


def test_a_terminal_gets_no_markup(tmp_path: Path) -> None:
    folders = [write_folder(tmp_path / name, tensors(i)) for i, name in enumerate(["my_model", "b_2"])]
    result = CliRunner().invoke(main, ["inspect", *map(str, folders)], env={"COLUMNS": "70"})
    assert result.exit_code == 0 and not re.search(r"\\_|[|`*#]", result.stdout), result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 70 and "  my_model  parent  " in result.stdout
    numbers = [line[2] for line in lines[lines.index("What fits") :] if re.match(r"  \d\. ", line)]
    assert numbers == [str(n + 1) for n in range(len(numbers))] and len(numbers) > 0


def test_markdown_numbers_its_list(tmp_path: Path) -> None:
    states, base = family(3, 0.01)
    listed = to_markdown(inspect_parents(states, base)).split("### What fits")[1].split()
    assert [word for word in listed if re.fullmatch(r"\d\.", word)][:2] == ["1.", "2."]


@pytest.mark.parametrize(
    ("given", "base", "told"),
    [
        (["a"], None, "there is one model only"),
        (["a", "b", "a"], None, "a and a (2) are the same files"),
        (["a", "b"], "a", "a and a (2) are the same files"),
        (["a", "copy"], None, "a and copy have the same weights"),
        (["a", "copy"], "b", "a and copy have the same changes from the base"),
        (["a", "b"], "copy", "a has the weights of its base"),
        (["a"], "b", None),
        (["a", "b"], None, None),
    ],
)
def test_models_that_are_none_to_compare_are_told(
    given: list[str], base: str | None, told: str | None, tmp_path: Path
) -> None:
    for name, seed in {"a": 0, "b": 1, "copy": 0}.items():
        write_folder(tmp_path / name, tensors(seed), files=tokenizer())
    found = inspect_parents([tmp_path / name for name in given], base and tmp_path / base)
    assert found.compatible
    assert [told in line for line in found.problems] == [True] if told else found.problems == ()
