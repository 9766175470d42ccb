"""Surveys of a whole model: what they depend on decides which tensors share one, and nothing else does."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from merge_models.merge import merge, prepare, run_recipe
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel, Moments, Pass, Survey
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.strategies.families.blocks import torch_kernel
from tests.helpers import assert_same_bits, read_folder, tensors, write_folder

LAYERS = ("model.layers.0.", "model.layers.1.")

CASES: dict[str, tuple[str, dict[str, Any], str, tuple[Any, Any]]] = {
    "ties, weight": ("ties", {"density": 0.1, "normalize": False}, "weight", (1, 0.5)),
    "ties, lambda": ("ties", {"density": 0.1, "rescale": "l1"}, "lambda", (1, 0.5)),
    "ties, normalize": ("ties", {"density": 0.1, "weight": 0.5}, "normalize", (True, False)),
    "pcb, weight": ("pcb", {}, "weight", (1, 0.5)),
    "pcb, lambda": ("pcb", {}, "lambda", (1, 0.5)),
    "ramplus_tl, r": ("ramplus_tl", {"epsilon": 0.3, "alpha": 5}, "r", (0.1, 0.9)),
    "ramplus_tl, alpha": ("ramplus_tl", {"epsilon": 0.3, "r": 1}, "alpha", (0.01, 0.9)),
}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    """A base and two models whose second layer is a hundred times as far from it as all else."""
    base = tensors(0)
    places = [write_folder(tmp_path / "base", base)]
    for seed in (1, 2):
        far = {name: 100.0 if name.startswith(LAYERS[1]) else 1.0 for name in base}
        moved = {name: base[name] + far[name] * 0.01 * delta for name, delta in tensors(seed).items()}
        places.append(write_folder(tmp_path / f"m{seed}", moved))
    return [str(place) for place in places]


def merged(models: list[str], method: str, parameters: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    recipe = parse_recipe(
        {
            "merge_method": method,
            "base_model": models[0],
            "models": models[1:],
            "parameters": {**parameters, "scope": "model"},
        }
    )
    assert not prepare(recipe).plan.remarks
    run_recipe(recipe, out)
    return read_folder(out)


@pytest.mark.parametrize("case", CASES)
def test_what_a_survey_does_not_depend_on_may_differ_by_tensor(
    case: str, models: list[str], tmp_path: Path
) -> None:
    method, fixed, name, (first, second) = CASES[case]
    alike = [
        merged(models, method, {**fixed, name: value}, tmp_path / str(value)) for value in (first, second)
    ]
    filters = [{"filter": LAYERS[0], "value": first}, {"value": second}]
    mixed = merged(models, method, {**fixed, name: filters}, tmp_path / "mixed")
    for tensor, found in mixed.items():
        assert_same_bits(found, alike[0 if tensor.startswith(LAYERS[0]) else 1][tensor], tensor)
    assert any(not torch.equal(alike[0][tensor], alike[1][tensor]) for tensor in mixed), "it changes nothing"


def test_what_it_depends_on_divides_the_model_aloud(models: list[str]) -> None:
    density = [{"filter": "norm", "value": 1}, {"value": 0.1}]
    recipe = {"merge_method": "ties", "base_model": models[0], "models": models[1:]}
    plan = prepare(parse_recipe({**recipe, "parameters": {"density": density, "scope": "model"}})).plan
    assert len({tensor.survey_group for tensor in plan.tasks}) == 2
    assert plan.remarks and "2 groups of tensors" in plan.remarks[0]


def test_other_models_are_measured_apart(models: list[str]) -> None:
    base, *others = models
    runs = [{"sources": [{"model": m, "layer_range": [i, i + 1]}]} for i, m in enumerate(others)]
    recipe = {"merge_method": "ties", "base_model": base, "slices": runs}
    plan = prepare(parse_recipe({**recipe, "parameters": {"density": 0.5, "scope": "model"}})).plan
    assert len({tensor.survey_group for tensor in plan.tasks}) == 2


@pytest.mark.parametrize("method", ["ties", "pcb", "ramplus_tl"])
def test_the_layout_of_files_changes_no_byte(method: str, tmp_path: Path) -> None:
    """Equal magnitudes are many: which of them are taken is a matter of names and places."""
    states = [
        {name: value.mul(4).round().bfloat16() for name, value in tensors(seed).items()} for seed in range(3)
    ]
    parameters = {"density": 0.3} if method == "ties" else {}
    found = []
    for layout, shards in enumerate((1, 3, 2)):
        order = list(states[0])[:: 1 if layout < 2 else -1]
        places = [
            str(
                write_folder(tmp_path / f"{layout}-{n}", {name: state[name] for name in order}, shards=shards)
            )
            for n, state in enumerate(states)
        ]
        found.append(merged(places, method, parameters, tmp_path / f"out{layout}"))
    for other in found[1:]:
        for name, value in found[0].items():
            assert_same_bits(other[name], value, name)


class Known:
    """What a survey of a test returns; counted while anyone has it."""

    alive: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __init__(self) -> None:
        Known.alive += 1
        Known.most = max(Known.most, Known.alive)

    def __del__(self) -> None:
        Known.alive -= 1


def _nothing(block: Block) -> Moments:
    return (torch.zeros(1, dtype=torch.float64),)


def _survey(elements: int) -> Survey:
    yield Pass(_nothing)
    return Known()


@dataclass(frozen=True)
class Surveyed(AbstractStrategy):
    """Merges after a survey that returns what could be a large matrix."""

    name: ClassVar[str] = "surveyed"

    def kernel(self, case: Case) -> Kernel:
        return torch_kernel(case, self._first, survey=_survey)

    def _first(self, block: Block, survey: Known) -> Tensor:
        del survey
        return block.parents[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_tensor_s_survey_is_let_go_of_with_its_last_block(threads: int) -> None:
    """A model's surveys together may be as large as the model."""
    Known.alive = Known.most = 0
    states = [{f"w{n}": torch.randn(8, 8) for n in range(30)} for _ in range(2)]
    merge(states, Surveyed(), threads=threads)
    gc.collect()
    assert Known.most <= 2 * threads + 1 and Known.alive == 0
