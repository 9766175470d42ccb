"""Merges of state dicts and modules: what is shared stays shared, what is not a model is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from merge_models.merge import MergeError, merge, soup
from merge_models.merge.strategies import (
    AbstractStrategy,
    ArceeFusion,
    DareLinear,
    Karcher,
    Linear,
    ModelStock,
    MultiSlerp,
    NormMean,
    Slerp,
    TaskArithmetic,
)
from tests.helpers import read_folder, tensors, write_folder


class Tied(nn.Module):
    """An embedding that is the head too."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize(
    "strategy",
    [ModelStock(), TaskArithmetic(weight=(9.0, 0.5, 0.25)), Karcher(origin="base"), NormMean(origin="base")]
    + [MultiSlerp(weight=(9.0, 0.5, 0.25)), Linear(weight=(1.0, 2.0, 3.0))],
    ids=lambda strategy: strategy.name,
)
def test_a_base_among_the_models_means_the_same_as_on_disk(
    strategy: AbstractStrategy, tmp_path: Path
) -> None:
    states = [tensors(seed) for seed in range(3)]
    paths = [write_folder(tmp_path / f"m{seed}", state) for seed, state in enumerate(states)]
    held = merge(states, strategy, base=states[0])
    merge(paths, strategy, base=paths[0], out=tmp_path / "out")
    stored = read_folder(tmp_path / "out")
    assert held.keys() == stored.keys() and all(torch.equal(held[name], stored[name]) for name in held)


@pytest.mark.parametrize("strategy", [DareLinear(normalize=True), Slerp(t=0.25)], ids=lambda s: s.name)
def test_a_base_among_the_models_may_be_another_object_with_its_tensors(strategy: AbstractStrategy) -> None:
    """``state_dict()`` gives a new dict each time."""
    base, other, twin = Tied(0), Tied(1), Tied(0)
    wanted = merge([base, other], strategy, base=base)
    for spelled in (base.state_dict(), dict(base.state_dict())):
        found = merge([spelled, other], strategy, base=base)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    if isinstance(strategy, DareLinear):  # a copy is another model
        apart = merge([twin, other], strategy, base=base)
        assert not all(torch.equal(apart[name], wanted[name]) for name in wanted)


def test_a_base_alone_is_nothing_to_merge() -> None:
    state = tensors(0)
    with pytest.raises(MergeError, match="besides the base"):
        merge([state], ModelStock(), base=state)


def test_tied_parameters_stay_equal() -> None:
    models, base = [Tied(1), Tied(2)], Tied(0)
    merged = merge(models, DareLinear(density=0.5), base=base)
    assert torch.equal(merged["head.weight"], merged["embedding.weight"])
    assert list(merged) == list(base.state_dict())


def test_parameters_tied_in_one_model_only_are_merged_apart() -> None:
    tied, loose = Tied(1), copy.deepcopy(Tied(2))
    loose.head.weight = nn.Parameter(loose.head.weight.detach() + 1)
    merged = merge([tied, loose])
    assert torch.allclose(merged["head.weight"], merged["embedding.weight"] + 0.5)


def test_batch_normalisations_of_unequal_age_are_merged() -> None:
    models = [nn.BatchNorm1d(4), nn.BatchNorm1d(4)]
    for _ in range(3):
        models[1](torch.randn(8, 4))
    merged = merge(models)
    assert int(merged["num_batches_tracked"]) == 0
    wanted = (models[0].running_mean + models[1].running_mean) / 2  # type: ignore[operator]
    assert torch.allclose(merged["running_mean"], wanted)


def test_views_are_read_by_their_values() -> None:
    x = torch.randn(4, dtype=torch.complex64)
    negative = x.conj().imag  # a view whose sign is a bit
    assert negative.is_neg() and torch.equal(merge([{"w": negative}])["w"], negative)


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor], ids=["float32", "float64", "torch"])
def test_weights_may_be_arrays(kind: Callable[[Any], Any]) -> None:
    states = [tensors(0), tensors(1)]
    wanted = soup(states, weights=(0.25, 0.75))
    several: list[Any] = [np.array([0.25, 0.75]), torch.tensor([0.25, 0.75]), [kind(0.25), kind(0.75)]]
    for weights in several:
        merged = soup(states, weights=weights)
        assert all(torch.equal(merged[name], wanted[name]) for name in wanted)


def test_models_may_come_one_by_one() -> None:
    states = [tensors(0), tensors(1)]
    merged = merge(state for state in states)  # type: ignore[call-overload]
    assert torch.equal(merged["model.norm.weight"], merge(states)["model.norm.weight"])


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (tensors(0), "give a list"),
        (nn.Linear(2, 2), "give a list"),
        (nn.Sequential(nn.Linear(2, 2)), "give a list"),
        ("folder", "give a list"),
        (3, "give a list"),
        ([3], "a state dict or a module, not 3"),
        ([{3: torch.ones(2)}], "3 is no name of a tensor"),
        ([], "no models"),
    ],
    ids=str,
)
def test_what_is_no_list_of_models(models: Any, words: str) -> None:
    with pytest.raises(MergeError, match=words):
        merge(models)


@pytest.mark.parametrize("strategy", [Karcher(weight=(1.0, 0.0)), Karcher(weight=(0.0, 1.0))], ids=str)
def test_a_bad_value_is_told_whatever_its_weight(strategy: Karcher) -> None:
    """The sphere's mean needs all inner products: a parent without a say may not spoil them unseen."""
    good, bad = tensors(0), tensors(1)
    bad["model.norm.weight"][3] = float("nan")
    with pytest.raises(MergeError, match=r"model 1: tensor 'model.norm.weight' holds NaN"):
        merge([good, bad], strategy)


def test_the_largest_change_is_the_most_important() -> None:
    base = {"w": torch.zeros(64, 64)}
    other = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    other["w"][5, 7] = 1000.0
    assert merge([other], ArceeFusion(), base=base)["w"][5, 7] == 1000.0
