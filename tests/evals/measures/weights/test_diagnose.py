"""Diagnosis of weights: known answers, float64 numpy references, scale laws, and bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_models.evals.diagnostics.weights.hyperspherical import NEURONS
from merge_models.evals.measures.weights.diagnose import diagnose_parents, diagnose_weights
from merge_models.evals.schema import TensorWeights, WeightDiagnosis
from merge_models.merge.errors import MergeError
from tests.evals.measures.weights.states import exact_rank, gaussian, spectrum_of
from tests.helpers import SHAPES, tensors, write_folder

State = dict[str, Tensor]


def siblings(count: int, spread: float = 0.1, shape: tuple[int, ...] = (40, 30)) -> tuple[list[State], State]:
    base = {"layers.0.w": gaussian(100, *shape)}
    parents = [{"layers.0.w": base["layers.0.w"] + spread * gaussian(i, *shape)} for i in range(count)]
    return parents, base


def mean(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def one(found: WeightDiagnosis) -> TensorWeights:
    (record,) = found.tensors
    return record


def reference(merge: Tensor, parents: list[Tensor], base: Tensor, shares: np.ndarray) -> dict[str, Any]:
    """Every number of one matrix, from its definition, in numpy."""
    m, b = merge.double().numpy(), base.double().numpy()
    ps = [p.double().numpy() for p in parents]
    ds = [p - b for p in ps]

    def over(value: float, others: list[float]) -> float:
        return value / float(shares @ np.array(others))

    def top(x: np.ndarray) -> float:
        return float(np.linalg.norm(x, 2))

    def stable(x: np.ndarray) -> float:
        return float(np.linalg.norm(x) ** 2 / top(x) ** 2)

    def rank(x: np.ndarray) -> float:
        return exact_rank(torch.from_numpy(x))

    def energy(x: np.ndarray) -> float:
        units = x / np.linalg.norm(x, axis=1, keepdims=True)
        return float(np.mean([1 / np.linalg.norm(u - v) for u, v in itertools.combinations(units, 2)]))

    fit = np.linalg.lstsq(np.stack([d.ravel() for d in ds], 1), (m - b).ravel(), rcond=None)[0]
    size = np.abs(fit) / np.abs(fit).sum()
    rest = (m - b).ravel() - sum(c * d.ravel() for c, d in zip(fit, ds, strict=True))
    signs = np.sign(np.stack(ds))
    contested = (signs != 0).sum(0) >= 2
    clash = (signs > 0).any(0) & (signs < 0).any(0)
    centre = sum(w * p for w, p in zip(shares, ps, strict=True))
    angles = [np.arccos((p * centre).sum() / np.linalg.norm(p) / np.linalg.norm(centre)) for p in ps]
    k = min(8, min(m.shape) // 4)
    spaces = [np.linalg.svd(d, full_matrices=False)[0][:, :k] for d in ds]
    pairs = itertools.combinations(spaces, 2)
    overlap = [np.linalg.norm(u.T @ v) ** 2 / k - k / m.shape[0] for u, v in pairs]
    return {
        "norm": np.linalg.norm(m),
        "norm_ratio": over(float(np.linalg.norm(m)), [float(np.linalg.norm(p)) for p in ps]),
        "delta_norm": np.linalg.norm(m - b),
        "delta_norm_ratio": over(float(np.linalg.norm(m - b)), [float(np.linalg.norm(d)) for d in ds]),
        "spectral_norm": top(m),
        "spectral_norm_ratio": over(top(m), [top(p) for p in ps]),
        "stable_rank": stable(m),
        "stable_rank_ratio": over(stable(m), [stable(p) for p in ps]),
        "effective_rank": rank(m),
        "effective_rank_ratio": over(rank(m), [rank(p) for p in ps]),
        "delta_effective_rank": rank(m - b),
        "delta_effective_rank_ratio": over(rank(m - b), [rank(d) for d in ds]),
        "hyperspherical_energy": energy(m),
        "hyperspherical_energy_ratio": over(energy(m), [energy(p) for p in ps]),
        "sign_conflict": (clash & contested).sum() / contested.sum(),
        "subspace_overlap": np.mean(overlap),
        "largest_angle": max(angles),
        "effective_parents": np.exp(-(size * np.log(size)).sum()),
        "unexplained": (rest @ rest) / ((m - b) ** 2).sum(),
        "parent_share": tuple(fit),
    }


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (300, 200)], ids=str)
def test_every_number_is_that_of_numpy(shape: tuple[int, int]) -> None:
    parents, base = siblings(3, 0.3, shape)
    for i, parent in enumerate(parents):  # deltas with zeros, of different sizes
        delta = (parent["layers.0.w"] - base["layers.0.w"]) * (i + 1)
        parent["layers.0.w"] = base["layers.0.w"] + torch.where(gaussian(50 + i, *shape) > 0.5, 0, delta)
    shares = np.array([0.5, 0.3, 0.2])
    merge = {"layers.0.w": sum(s * p["layers.0.w"] for s, p in zip([0.4, 0.3, 0.2], parents, strict=True))}
    merge["layers.0.w"] = merge["layers.0.w"] + 0.05 * gaussian(9, *shape)
    found = one(diagnose_weights(merge, parents, base, weights=[5, 3, 2])).model_dump()
    wanted = reference(merge["layers.0.w"], [p["layers.0.w"] for p in parents], base["layers.0.w"], shares)
    if shape[0] > NEURONS:  # sampled neurons: near the mean over all, not equal to it
        energy = wanted.pop("hyperspherical_energy")
        assert found["hyperspherical_energy"] == pytest.approx(energy, rel=2e-3)
        assert found["hyperspherical_energy_ratio"] == pytest.approx(
            wanted.pop("hyperspherical_energy_ratio"), rel=2e-3
        )
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name
    assert (found["rank_method"], found["rank_error"], found["finite"]) == ("exact", 0.0, True)


def test_a_merge_of_identical_parents_changes_nothing() -> None:
    parents, base = siblings(1)
    found = one(diagnose_weights(parents[0], [parents[0]] * 3, base))
    for name, value in found:
        if name.endswith("_ratio"):
            assert value == pytest.approx(1.0, abs=1e-12), name
    assert np.allclose(np.array(found.cosine, dtype=float), 1.0, atol=1e-12)
    assert found.sign_conflict == 0
    assert found.parent_share == pytest.approx((1 / 3,) * 3)
    assert found.effective_parents == pytest.approx(3)
    assert found.unexplained == pytest.approx(0, abs=1e-15)
    assert found.largest_angle == pytest.approx(0, abs=1e-7) and found.unique


def test_duplicates_have_cosine_one_and_opposites_conflict_everywhere() -> None:
    base = gaussian(0, 20, 20)
    delta = gaussian(1, 20, 20)
    states = [{"w": base + scale * delta} for scale in (0.5, 0.5, -0.5)]
    found = one(diagnose_parents(states, {"w": base}))
    wanted = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    assert np.allclose(np.array(found.cosine, dtype=float), wanted, atol=1e-12)
    assert found.sign_conflict == 1.0


def test_zeros_take_no_side_in_a_sign_conflict() -> None:
    base = torch.zeros(1, 5)
    deltas = [[1.0, 0.0, 2.0, 0.0, 1.0], [1.0, 3.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, -1.0]]
    found = one(diagnose_parents([{"w": torch.tensor([row])} for row in deltas], {"w": base}))
    assert found.sign_conflict == pytest.approx(2 / 3)  # of columns 0, 2 and 4, columns 2 and 4


def test_orthogonal_deltas_average_to_the_root_of_their_number() -> None:
    base = gaussian(0, 16, 16)
    deltas = [torch.zeros(16, 16, dtype=torch.float64) for _ in range(4)]
    rows = torch.linalg.qr(gaussian(1, 16, 16))[0]
    for i, delta in enumerate(deltas):
        delta[4 * i : 4 * i + 4] = rows[4 * i : 4 * i + 4]
    parents = [{"w": base + delta} for delta in deltas]
    found = one(diagnose_weights(mean(parents), parents, {"w": base}))
    assert np.allclose(np.array(found.cosine, dtype=float), np.eye(4), atol=1e-12)
    assert found.delta_norm_ratio == pytest.approx(1 / 2)
    assert found.sign_conflict is None  # no coordinate has two nonzero deltas
    assert found.delta_effective_rank == pytest.approx(16)
    assert found.delta_effective_rank_ratio == pytest.approx(4)
    assert found.effective_parents == pytest.approx(4)


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e18])
def test_scale_changes_norms_alone(scale: float) -> None:
    parents, base = siblings(2, shape=(500, 400))
    states = [*parents, mean(parents), base]
    plain, scaled = (
        one(diagnose_weights(s[2], s[:2], s[3]))
        for s in (states, [{n: (t * scale).float() for n, t in state.items()} for state in states])
    )
    for name, value in plain:
        factor = scale if name in ("norm", "delta_norm", "spectral_norm") else 1.0
        if isinstance(value, float):
            assert getattr(scaled, name) == pytest.approx(value * factor, rel=1e-4, abs=1e-5), name


def test_a_permuted_copy_has_the_same_spectrum_and_is_far_away() -> None:
    parent = gaussian(0, 64, 48)
    copy = parent[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    soup = (parent + copy) / 2
    found = one(diagnose_weights({"w": soup}, [{"w": parent}, {"w": copy}]))
    alone = one(diagnose_weights({"w": copy}, [{"w": parent}]))
    for name in ("norm_ratio", "spectral_norm_ratio", "stable_rank_ratio", "effective_rank_ratio"):
        assert getattr(alone, name) == pytest.approx(1, abs=1e-9), name
    assert found.norm_ratio == pytest.approx(math.sqrt(1 / 2), abs=0.03)
    assert found.largest_angle == pytest.approx(math.pi / 4, abs=0.03)


@pytest.mark.parametrize("scale", [-1.0, 1.0])
def test_opposite_parents_leave_the_ball_of_a_unique_mean(scale: float) -> None:
    first, second = gaussian(0, 8, 8), gaussian(1, 8, 8)
    states = [{"w": first}, {"w": scale * first + 0.1 * second}, {"w": first + 0.1 * second}]
    found = one(diagnose_parents(states))
    assert found.unique is (scale > 0)


@pytest.mark.parametrize("shape", [(20, 30), (300, 200), (600, 400)], ids=str)
def test_a_rank_one_matrix_has_effective_rank_one(shape: tuple[int, int]) -> None:
    matrix = torch.outer(gaussian(0, shape[0]), gaussian(1, shape[1])).float()
    found = spectrum_of(matrix)
    assert found.effective_rank == pytest.approx(1, abs=1e-3)
    assert found.spectral_norm == pytest.approx(float(matrix.double().norm()), rel=1e-5)


def test_hyperspherical_energy_is_that_of_directions() -> None:
    orthogonal = torch.linalg.qr(gaussian(0, 32, 32))[0]
    rotated = gaussian(1, 40, 32) @ orthogonal
    plain, turned, even = (
        one(diagnose_weights({"w": w}, [{"w": w}])) for w in (gaussian(1, 40, 32) * 7, rotated, orthogonal)
    )
    assert plain.hyperspherical_energy == pytest.approx(turned.hyperspherical_energy, rel=1e-9)
    assert even.hyperspherical_energy == pytest.approx(math.sqrt(0.5))
    copies = torch.ones(4, 8)
    found = one(diagnose_weights({"w": copies}, [{"w": copies}]))
    assert found.hyperspherical_energy == pytest.approx(1000)  # finite, and dear


def shapes_of_every_kind(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(12, 6, generator=generator).bfloat16(),
        "layers.0.weight": torch.randn(6, 6, generator=generator).half(),
        "layers.0.bias": torch.randn(6, generator=generator),
        "layers.1.conv": torch.randn(4, 3, 3, 3, generator=generator),
        "layers.1.zero": torch.zeros(5, 5),
        "layers.1.empty": torch.zeros(0, 5),
        "layers.1.scalar": torch.randn((), generator=generator).double(),
        "layers.1.counts": torch.arange(4),
    }


def test_tensors_of_every_shape_and_dtype_are_defined() -> None:
    states = [shapes_of_every_kind(seed) for seed in range(3)]
    found = diagnose_weights(*[states[0], states[1:]], base=shapes_of_every_kind(7))
    records = {record.name: record for record in found.tensors}
    assert list(records) == [name for name in states[0] if name != "layers.1.counts"]
    assert all(record.finite for record in found.tensors)
    zero, empty = records["layers.1.zero"], records["layers.1.empty"]
    assert (zero.norm, zero.norm_ratio, zero.effective_rank, zero.cosine) == (
        0,
        None,
        None,
        ((None,) * 2,) * 2,
    )
    assert (empty.norm, empty.norm_ratio, empty.rank_method) == (0, None, None)
    assert records["layers.0.bias"].effective_rank is None and records["layers.0.bias"].norm_ratio
    conv = records["layers.1.conv"]
    assert conv.effective_rank == pytest.approx(
        exact_rank(states[0]["layers.1.conv"].reshape(4, 27)), rel=1e-6
    )
    assert [row.layer for row in found.depth] == [0, 1, None]
    assert WeightDiagnosis.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["merge", "parent", "base"])
def test_values_that_are_not_finite_are_reported(value: float, where: str) -> None:
    states: dict[str, State] = {"merge": tensors(0), "parent": tensors(1), "base": tensors(2)}
    name = "model.layers.1.mlp.up_proj.weight"
    clean = diagnose_weights(states["merge"], [states["parent"], tensors(3)], states["base"])
    states[where][name][3, 2] = value
    found = diagnose_weights(states["merge"], [states["parent"], tensors(3)], states["base"])
    records = {record.name: record for record in found.tensors}
    assert records[name].finite is (where != "merge")
    assert (records[name].norm is None) is (where == "merge")
    assert records[name].norm_ratio is None
    assert bool(found.problems) is (where != "merge")
    for record in clean.tensors:
        assert record.name == name or records[record.name] == record
    assert found.norm_ratio is not None


def test_tensors_that_a_parent_lacks_are_named_and_the_rest_compared() -> None:
    parents = [tensors(1), tensors(2)]
    del parents[0]["model.norm.weight"]
    parents[1]["lm_head.weight"] = torch.randn(13, 8)
    found = diagnose_weights(tensors(0), parents)
    assert [line.split(" in ")[0] for line in found.problems] == [
        "parent 1 has no tensor 'model.norm.weight'", "'lm_head.weight' is [13, 8]",
    ]  # fmt: skip
    records = {record.name: record for record in found.tensors}
    assert set(records) == set(SHAPES)
    assert records["lm_head.weight"].norm and records["lm_head.weight"].norm_ratio is None
    assert records["model.embed_tokens.weight"].norm_ratio


@pytest.mark.parametrize(
    ("merged", "parents", "options", "message"),
    [
        (tensors(0), [], {}, "give one or more"),
        (tensors(0), [{"other": torch.ones(3)}], {}, "fits the merge in 0 % of the weights"),
        (tensors(0), [tensors(1)], {"base": {"other": torch.ones(3)}}, "the base fits"),
        (tensors(0), [tensors(1)], {"weights": [0.5, 0.5]}, "2 weights for 1 parent"),
        (tensors(0), [tensors(1)], {"weights": [-1.0]}, "none negative"),
        (tensors(0), [tensors(1)], {"weights": [math.nan]}, "none negative"),
        (tensors(0), ["/nowhere/at/all"], {}, "no such file or folder"),
        (tensors(0), [7], {}, "parent 1 is int"),
    ],
)
def test_bad_input_is_a_message(
    merged: State, parents: list[Any], options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        diagnose_weights(merged, parents, **options)


def test_folders_states_and_threads_give_the_same_numbers(tmp_path: Path) -> None:
    states = [tensors(seed) for seed in range(4)]
    folders = [write_folder(tmp_path / f"m{i}", s, shards=2) for i, s in enumerate(states)]
    found = [
        diagnose_weights(folders[0], folders[1:3], folders[3], threads=1),
        diagnose_weights(folders[0], folders[1:3], folders[3], threads=3),
        diagnose_weights(states[0], states[1:3], states[3], threads=2),
    ]
    records = [{r.name: r for r in diagnosis.tensors} for diagnosis in found]
    assert records[0] == records[1] == records[2]


def test_parents_alone_have_no_merge_in_their_records() -> None:
    found = diagnose_parents([tensors(0), tensors(1)], tensors(2))
    for record in found.tensors:
        assert record.norm is None and record.parent_share is None and record.cosine is not None
    assert found.delta_norms is not None and found.norm_ratio is None
