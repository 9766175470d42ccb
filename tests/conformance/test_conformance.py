"""Results against mergekit 0.1.5's, stored by tests/conformance/regenerate.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge_models.merge import merge
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.strategies import STRATEGIES, AbstractStrategy
from merge_models.merge.strategies.registry import find_strategy
from tests.conformance.regenerate import sample_inputs, statistics
from tests.conformance.table import ROWS, SAMPLE_SHAPE, SAMPLES, SHAPES, Row, Sample

STORED = load_file(Path(__file__).parent / "mergekit_0_1_5.safetensors")
KNOWN = {word for strategy in STRATEGIES for word in (strategy.name, *strategy.aliases)}


def strategy_of(method: str, parameters: dict[str, Any], ours: dict[str, Any]) -> AbstractStrategy:
    values = {**parameters, **ours}
    kind = find_strategy(values.pop("method", method))
    fields = {name: parameter.field for name, parameter in parameters_of(kind).items()}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    return kind(**{fields[name]: value for name, value in given.items()})


def inputs(row: Row, family: str, dtype: torch.dtype) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    parents = [
        {name: STORED[f"{family}/{parent}/{name}"].to(dtype) for name in row.shapes}
        for parent in range(row.parents)
    ]
    base = {name: STORED[f"base/{name}"].to(dtype) for name in row.shapes}
    return parents, base


def merged(row: Row, parents: list[dict[str, Tensor]], base: dict[str, Tensor]) -> dict[str, Tensor]:
    strategy = strategy_of(row.method, row.parameters, row.ours)
    if row.base == "first":
        return merge([base, *parents], strategy)
    return merge(parents, strategy, base=base if row.base == "base" else None)


def theirs(row: Row, family: str) -> dict[str, Tensor]:
    counts = [torch.Size(SHAPES[name]).numel() for name in row.shapes]
    parts = STORED[f"{row.name}/{family}"].split(counts)
    return {name: part.view(SHAPES[name]) for name, part in zip(row.shapes, parts, strict=True)}


def gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("row", [row for row in ROWS if row.method in KNOWN], ids=lambda row: row.name)
def test_float64_results_agree(row: Row) -> None:
    gaps = []
    for family in row.families:
        found = merged(row, *inputs(row, family, torch.float64))
        expected = theirs(row, family)
        gaps += [gap(found[name], expected[name]) for name in row.shapes]
    if row.differs:
        assert max(gaps) > row.tolerance, f"no longer differs: {row.differs}"
    else:
        assert max(gaps) <= row.tolerance


@pytest.mark.parametrize("row", [row for row in ROWS if row.method in KNOWN], ids=lambda row: row.name)
def test_bfloat16_results_are_float64_results_rounded(row: Row) -> None:
    parents, base = inputs(row, row.families[0], torch.bfloat16)
    narrow = merged(row, parents, base)
    wide = merged(row, [doubled(parent) for parent in parents], doubled(base))
    for name in row.shapes:
        assert torch.equal(narrow[name], wide[name].float().bfloat16()), name


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


def test_every_method_of_mergekit_has_a_row() -> None:
    methods = """
        linear slerp nuslerp multislerp karcher passthrough model_stock nearswap arcee_fusion sce ram
        ramplus_tl task_arithmetic ties dare_ties dare_linear breadcrumbs breadcrumbs_ties della della_linear
    """
    assert {row.method for row in ROWS} == set(methods.split())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_random_methods_keep_and_scale_alike(sample: Sample) -> None:
    base, parent = sample_inputs()
    strategy = strategy_of(sample.method, sample.parameters, sample.ours)
    found = merge([{"w": parent}], strategy, base={"w": base}, seed=3)["w"]
    size = torch.Size(SAMPLE_SHAPE).numel()
    noise = torch.tensor([1, *[2] * 4, 1]) * 5 * (0.5 / size) ** 0.5  # two draws, five standard deviations
    assert bool(((statistics(found) - STORED[f"sample/{sample.name}"]).abs() <= noise).all())
