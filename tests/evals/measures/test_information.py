"""O-information: analytic values, identities, invariances, thoi as an oracle, and refusals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from merge_models.evals.measures.information import (
    RIDGE,
    diagnose_information,
    entropy_bias,
    gaussian_ranks,
    measures,
    o_information,
)
from merge_models.evals.schema import Estimate, ModelRef, OInformation
from merge_models.merge.errors import MergeError

SINGLE = [[0], [1], [2]]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def omega(found: OInformation) -> Estimate:
    assert found.o_information is not None, found.refused
    return found.o_information


def mutual_information(covariance: np.ndarray, first: list[int], second: list[int]) -> float:
    both = first + second
    parts = (np.linalg.slogdet(covariance[np.ix_(b, b)])[1] for b in (first, second))
    return (sum(parts) - np.linalg.slogdet(covariance[np.ix_(both, both)])[1]) / 2


def conditioned(covariance: np.ndarray, given: list[int]) -> np.ndarray:
    cross = covariance[:, given]
    return covariance - cross @ np.linalg.solve(covariance[np.ix_(given, given)], cross.T)


def brute_force(covariance: np.ndarray, blocks: list[list[int]]) -> tuple[float, float]:
    """TC and DTC from the entropies of every part, one determinant each."""

    def entropy(columns: list[int]) -> float:
        part = covariance[np.ix_(columns, columns)]
        return (len(columns) * math.log(2 * math.pi * math.e) + np.linalg.slogdet(part)[1]) / 2

    everything = [column for block in blocks for column in block]
    whole = entropy(everything)
    rest = [entropy([c for c in everything if c not in block]) for block in blocks]
    return sum(map(entropy, blocks)) - whole, whole - sum(whole - r for r in rest)


def as_slices(blocks: list[list[int]]) -> list[slice]:
    return [slice(block[0], block[-1] + 1) for block in blocks]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("blocks", [SINGLE, [[0, 1], [2, 3, 4], [5], [6, 7]], [[0, 1], [2]]], ids=str)
def test_measures_are_those_of_every_entropy_alone(seed: int, blocks: list[list[int]]) -> None:
    n = blocks[-1][-1] + 1
    factor = normal(seed, n, n)
    covariance = factor @ factor.T + 0.1 * np.eye(n)
    tc, dtc = measures(torch.from_numpy(covariance), as_slices(blocks), None)
    assert (float(tc), float(dtc)) == pytest.approx(brute_force(covariance, blocks), rel=1e-10)
    if len(blocks) == 2:
        assert float(tc - dtc) == pytest.approx(0, abs=1e-12)
    if len(blocks) == 3:
        a, b, c = blocks
        given = conditioned(covariance, c)
        inside = mutual_information(covariance, a, b) - mutual_information(given, a, b)
        assert float(tc - dtc) == pytest.approx(inside, abs=1e-10)


def test_analytic_values_of_copies_and_of_a_sum() -> None:
    rho = 1 / (1 + RIDGE)  # three copies with the ridge: equal correlations
    copies = torch.full((3, 3), 1.0, dtype=torch.float64) + RIDGE * torch.eye(3)
    tc, dtc = measures(copies, as_slices(SINGLE), None)
    assert float(tc) == pytest.approx(-math.log((1 - rho) ** 2 * (1 + 2 * rho)) / 2)
    assert float(tc - dtc) > 1
    noise = 0.25  # X3 = X1 + X2 + noise: I(1;2) = 0, I(1;2|3) = -log(1 - r^2) / 2
    total = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 2 + noise]], dtype=torch.float64)
    tc, dtc = measures(total, as_slices(SINGLE), None)
    partial = 1 / (1 + noise)
    assert float(tc - dtc) == pytest.approx(math.log(1 - partial**2) / 2)


@pytest.mark.parametrize(
    ("kind", "sign"), [("copies", 1), ("sum", -1), ("independent", 0)], ids=lambda k: str(k)
)
def test_the_sign_is_read_out(kind: str, sign: int) -> None:
    x = normal(0, 2000, 3)
    if kind == "copies":
        x = x[:, :1] + 0.2 * x
    if kind == "sum":
        x[:, 2] = x[:, 0] + x[:, 1]
    found = o_information(x, SINGLE, what=kind)
    value = omega(found)
    assert found.reading == {1: "redundant", -1: "synergistic", 0: "indistinguishable"}[sign]
    assert value.low is not None and value.high is not None and value.low <= value.value <= value.high
    assert sign * value.value > 0.3 or (sign == 0 and abs(value.value) < 0.01)
    assert found.tc is not None and found.dtc is not None and found.s_information is not None
    assert value.value == pytest.approx(found.tc - found.dtc)
    assert found.s_information == pytest.approx(found.tc + found.dtc)
    assert found.null_mean == pytest.approx(0, abs=1e-3)


def test_exact_copies_are_bounded_by_the_ridge() -> None:
    x = normal(0, 500, 1).repeat(3, axis=1)
    value = omega(o_information(x, SINGLE, what="copies")).value
    rho = 1 / (1 + RIDGE)
    tc = -math.log((1 - rho) ** 2 * (1 + 2 * rho)) / 2
    dtc = brute_force(np.full((3, 3), rho) + (1 - rho) * np.eye(3), SINGLE)[1]
    assert value == pytest.approx(tc - dtc, rel=0.01)


def test_order_and_monotone_changes_of_columns_do_not_matter() -> None:
    x = normal(1, 400, 5)
    x[:, 3:] += x[:, :2]
    blocks = [[0, 1], [2, 3], [4]]
    plain = o_information(x, blocks, what="x", bootstrap=0)
    bent = np.column_stack([np.exp(x[:, 0]), x[:, 1] ** 3, -x[:, 2], np.arctan(x[:, 3]), 9 * x[:, 4] - 4])
    turned = o_information(x[::-1], [[4], [3, 2], [1, 0]], what="x", bootstrap=0)
    for other in (o_information(bent, blocks, what="x", bootstrap=0), turned):
        assert omega(other).value == pytest.approx(omega(plain).value, abs=1e-8)
        assert other.tc == pytest.approx(plain.tc, abs=1e-8)


def test_a_linear_change_inside_a_gaussian_block_hardly_matters() -> None:
    x = normal(2, 4000, 6)
    x[:, 2:4] += x[:, :2]
    x[:, 4:] += x[:, 2:4]
    blocks = [slice(0, 2), slice(2, 4), slice(4, 6)]
    turns = [np.linalg.qr(normal(3 + i, 2, 2))[0] for i in range(3)]
    mixed = np.concatenate([x[:, b] @ turn for b, turn in zip(blocks, turns, strict=True)], axis=1)
    found = [omega(o_information(v, blocks, what="x", bootstrap=0, ridge=0)).value for v in (x, mixed)]
    assert found[1] == pytest.approx(found[0], abs=0.02)


@pytest.mark.parametrize("columns", [3, 5])
def test_thoi_computes_the_same(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    copula = pytest.importorskip("thoi.measures.gaussian_copula")
    x = normal(4, 600, columns)
    x[:, -1] += x[:, 0] + x[:, 1]
    found = o_information(x, [[i] for i in range(columns)], what="x", bootstrap=0, ridge=0)
    theirs = copula.nplets_measures(x, [list(range(columns))]).reshape(-1).tolist()
    ours = [found.tc, found.dtc, omega(found).value, found.s_information]
    assert ours == pytest.approx(theirs, abs=1e-7)  # theirs takes the quantiles in float32


def test_entropy_bias_is_that_of_wishart_matrices() -> None:
    n, samples = 4, 30
    drawn = torch.from_numpy(normal(5, 4000, samples, n))
    centred = drawn - drawn.mean(1, keepdim=True)
    entropies = torch.linalg.slogdet(centred.mT @ centred / (samples - 1))[1] / 2
    assert entropy_bias(n, samples) == pytest.approx(float(entropies.mean()), abs=0.02)


def test_correction_removes_most_of_the_bias() -> None:
    x = torch.from_numpy(normal(6, 128, 16))
    covariance = torch.from_numpy(np.corrcoef(x.numpy().T))
    blocks = [slice(i, i + 1) for i in range(16)]
    plain, right = (measures(covariance, blocks, t) for t in (None, 128))
    assert abs(float(right[0])) < 0.2 * float(plain[0])
    assert abs(float(right[1])) < 0.2 * float(plain[1])


def test_ranks_with_ties_and_constant_columns_are_defined() -> None:
    x = torch.tensor([[1.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    ranks = gaussian_ranks(x)
    assert ranks[0, 0] == ranks[1, 0] < ranks[2, 0] < ranks[3, 0]
    assert not ranks[:, 1].any()
    data = normal(7, 300, 3)
    data[:, 1] = 0.0
    assert omega(o_information(data, SINGLE, what="dead unit")).value == pytest.approx(0, abs=0.01)


def test_too_few_samples_are_refused_with_the_number_needed() -> None:
    found = o_information(normal(0, 47, 6), [slice(0, 2), slice(2, 4), slice(4, 6)], what="x")
    assert found.refused is not None and "48 are needed" in found.refused
    assert found.o_information is None and found.reading is None
    assert o_information(normal(0, 48, 6), [slice(0, 3), slice(3, 6)], what="x").refused is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    x = normal(0, 100, 4)
    x[3, 0] = value
    found = o_information(x, SINGLE, what="x")
    assert found.refused == "the values hold NaN or Inf"
    assert o_information(x, [[1], [2], [3]], what="others").refused is None


@pytest.mark.parametrize("blocks", [[], [[0]], [[0], []], [[0], [0, 1]], [[0], [9]], [[0], [-1]]], ids=str)
def test_blocks_that_are_none_are_errors(blocks: list[list[int]]) -> None:
    with pytest.raises(MergeError, match="block"):
        o_information(normal(0, 100, 3), blocks, what="x")


def test_equal_seeds_give_equal_records_and_sequences_widen_intervals() -> None:
    shared = normal(8, 40, 1).repeat(25, axis=0)  # 40 sequences of 25 alike samples
    x = shared + 0.5 * normal(9, 1000, 3)
    sequences = np.arange(40).repeat(25)
    first, second = (o_information(x, SINGLE, what="x", seed=3, sequences=sequences) for _ in range(2))
    assert first == second
    alone = omega(o_information(x, SINGLE, what="x", seed=3))
    grouped = omega(first)
    assert grouped.low is not None and alone.low is not None
    assert grouped.value - grouped.low > 2 * (alone.value - alone.low)


@dataclass(frozen=True)
class _Site:
    site: str
    layer: int | None


class _Samples:
    """Activations as a probe gives them."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values = {name: value.astype(np.float32) for name, value in values.items()}
        roles = {"merge": "merge", "base": "base"}
        self.models = tuple(ModelRef(name=n, role=roles.get(n, "parent")) for n in values)  # type: ignore[arg-type]
        self.sites = (_Site("embedding", None), _Site("residual", 0), _Site("mlp", 0), _Site("residual", 1))
        self.tokens = len(next(iter(values.values())))
        self.sequences = np.arange(self.tokens) // 16

    def read(self, site: _Site) -> dict[str, np.ndarray]:
        return self.values


def parents_and(merge: str, tokens: int = 640) -> _Samples:
    text = normal(10, tokens, 24)
    a, b = (text + 0.7 * normal(11 + i, tokens, 24) for i in range(2))
    own = {"mean": (a + b) / 2, "copy": a, "stranger": normal(20, tokens, 24), "nan": a * np.nan}[merge]
    return _Samples({"merge": own, "a": a, "b": b, "base": text})


def test_a_merge_is_redundant_with_alike_parents_and_not_as_a_stranger() -> None:
    found = {m: diagnose_information(parents_and(m), (0.5, 0.5)) for m in ("mean", "copy", "stranger")}  # type: ignore[arg-type]
    for diagnosis in found.values():
        assert [record.layer for record in diagnosis.between] == [0, 1]
        assert list(diagnosis.within) == ["merge", "a", "b"]
        assert all(len(records) == 2 for records in diagnosis.within.values())
        assert {(r.variables, r.dimensions) for r in diagnosis.between} == {(3, 24)}
    copy, stranger = found["copy"].between[0], found["stranger"].between[0]
    assert copy.reading == "redundant" and omega(copy).value > 1
    assert stranger.reading == "indistinguishable"
    assert found["copy"].within["merge"] == tuple(
        r.model_copy(update={"what": r.what.replace("of a", "of merge")}) for r in found["copy"].within["a"]
    )


def test_few_tokens_take_fewer_components_and_then_a_refusal() -> None:
    found = diagnose_information(parents_and("mean", tokens=120))  # type: ignore[arg-type]
    assert found.between[0].dimensions == 15 and found.between[0].refused is None
    assert found.within["merge"][0].refused is not None
    bare = diagnose_information(parents_and("mean", tokens=20))  # type: ignore[arg-type]
    assert "24 are needed" in (bare.between[0].refused or "")


def test_a_merge_with_nan_is_refused_not_a_crash() -> None:
    found = diagnose_information(parents_and("nan"))  # type: ignore[arg-type]
    assert found.between[0].refused == "the values hold NaN or Inf"
    assert found.within["merge"][0].refused and found.within["a"][0].refused is None
