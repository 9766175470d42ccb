"""Arcee Fusion: divergences against 60 digits, thresholds against a sort, compiled against torch."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_models.merge import merge
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.importance import divergences, importances, take_important
from merge_models.merge.kernels.selection.samples import SAMPLE
from merge_models.merge.strategies import ArceeFusion


@pytest.fixture(params=["as installed", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test with the kernels of this machine, and with those for machines without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "library", lambda: None)
    yield request.param


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(parent: Tensor, base: Tensor) -> float:
    """The divergence of one run as the method has it, sum (p + f) log((p + f) / (q + f)), in 60 digits."""
    with localcontext(Context(prec=60)):
        floor = Decimal(1) / 10**8
        p, q = (softmax([Decimal(x) for x in run.tolist()]) for run in (parent, base))
        pairs = zip(p, q, strict=True)
        return float(sum((a + floor) * ((a + floor) / (b + floor)).ln() for a, b in pairs))


def softmax(values: list[Decimal]) -> list[Decimal]:
    top = max(values)
    powers = [(value - top).exp() for value in values]
    total = sum(powers)
    return [power / total for power in powers]


def divergence(parent: Tensor, base: Tensor) -> float:
    (found,) = divergences(Span.of(parent), Span.of(base), base.numel())
    return float(found)


def pair(count: int, spread: float, change: float, seed: int) -> tuple[Tensor, Tensor]:
    base = spread * normal(count, seed=seed)
    return base + change * normal(count, seed=seed + 1), base


def jump(base: float, parent: float, count: int) -> tuple[Tensor, Tensor]:
    """One element of a run of zeros changes."""
    zeros = torch.zeros(2, count, dtype=torch.float64)
    zeros[0, 3], zeros[1, 3] = parent, base
    return zeros[0], zeros[1]


RUNS = {
    **{
        f"{count} of spread {spread}, changed by {change}": pair(count, spread, change, count)
        for count in (2, 7, 8, 9, 300)
        for spread, change in [(0.02, 1e-3), (0.02, 1e-9), (0.1, 0.02), (0.5, 1e-3), (1.0, 0.5), (15.0, 2.0)]
    },
    "a long run": pair(3000, 0.02, 1e-3, 1),
    "a shift, and little else": (pair(50, 0.02, 1e-6, 2)[0] + 0.015, pair(50, 0.02, 1e-6, 2)[1]),
    "one grows": jump(0.0, 3.0, 2000),
    "one grows beyond all others": jump(0.0, 30.0, 2000),
    "one falls from above all others": jump(30.0, 0.0, 2000),
    "another one stands out": (torch.tensor([0.0, 20, -3]).double(), torch.tensor([0.0, -20, -4]).double()),
    "another one is all": (torch.tensor([0.0, 1e4, 5]).double(), torch.tensor([1e4, 0.0, 5]).double()),
    "far from zero": (pair(20, 1.0, 0.01, 3)[0] + 1e4, pair(20, 1.0, 0.01, 3)[1] + 1e4),
    "far below zero": (pair(20, 1.0, 3.0, 4)[0] - 1e5, pair(20, 1.0, 3.0, 4)[1] - 1e5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_divergences_are_right_to_13_digits(name: str, dtype: torch.dtype, kernels: str) -> None:
    parent, base = (values.to(dtype) for values in RUNS[name])
    wanted = formula(parent, base)
    assert divergence(parent, base) == pytest.approx(wanted, rel=1e-13, abs=1e-60)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_runs_that_only_shift_do_not_diverge(dtype: torch.dtype, kernels: str) -> None:
    base = torch.tensor([0.5, -0.25, 1.0, 0.125, 0.75]).to(dtype)
    assert divergence(base, base) == 0
    assert divergence(base + 2, base) == 0
    assert divergence(base[:1] * 3, base[:1]) == 0
    assert divergence(torch.full((1000,), 0.5), torch.full((1000,), 1e4)) == 0


def test_runs_of_a_block_do_not_know_of_each_other(kernels: str) -> None:
    parent, base = 0.1 * normal(40, 17).float(), 0.1 * normal(40, 17, seed=1).float()
    parent[3], base[5] = 1e30, -1e30
    parent[7] *= 100
    together = divergences(Span.of(parent), Span.of(base), 17)
    assert together.tolist() == [divergence(p, b) for p, b in zip(parent, base, strict=True)]


TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("length", [1, 3, 8, 100, 513, 2049])
def test_compiled_and_torch_kernels_give_the_same_bits(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")
    scales = [(0.02, 1e-3), (0.02, 0.0), (0.3, 1e-3), (1.0, 0.5), (20.0, 100.0), (1e4, 1.0)]
    rows = max(1, 3000 // length)
    for seed, (spread, change) in enumerate(scales):
        base = spread * normal(rows, length, seed=seed)
        parent = base + change * normal(rows, length, seed=seed + 9)
        for stored in TYPES:
            spans = Span.of(parent.to(stored)), Span.of(base.to(stored))
            found = []
            for library in (compiled.library(), None):
                monkeypatch.setattr(compiled, "library", lambda library=library: library)
                own = divergences(*spans, length)
                important = importances(*spans, own, length)
                least = float(important.tensor().nanmedian())
                out = torch.empty(base.numel(), dtype=torch.bfloat16)
                flags = take_important(*spans, own, length, least, Span.of(out))
                found.append((own.tobytes(), important.data.tobytes(), out.view(torch.int16), flags))
            monkeypatch.undo()
            (*first, taken, told), (*second, also_taken, also_told) = found
            assert first == second and torch.equal(taken, also_taken) and told == also_told


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_changes_of_at_least_the_threshold_are_taken(dtype: torch.dtype, kernels: str) -> None:
    parent, base = (values.to(dtype) for values in (normal(5, 700), normal(5, 700, seed=1)))
    spans, own = (Span.of(parent), Span.of(base)), np.array([0.5, 0.0, 1.0, np.nan, 2.0])
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    size = (parent.to(wide) - base.to(wide)).abs().double()
    important = (size * torch.from_numpy(own)[:, None]).float()
    assert torch.equal(
        importances(*spans, own, 700).tensor().view(5, 700).nan_to_num(), important.nan_to_num()
    )
    least = float(important[0, 5])
    out = torch.empty(5 * 700, dtype=dtype)
    assert take_important(*spans, own, 700, least, Span.of(out)) == 0
    assert torch.equal(out.view(5, 700), torch.where(important >= least, parent, base))
    head = torch.empty(900, dtype=dtype)
    parts = Span.of(parent.flatten()[:900]), Span.of(base.flatten()[:900])
    take_important(*parts, own, 700, least, Span.of(head))
    assert torch.equal(head, out[:900])


def test_what_is_not_finite_is_told_apart(kernels: str) -> None:
    base, parent = torch.ones(40), torch.full((40,), 1e6)
    bad = parent.clone()
    bad[39] = float("nan")
    own, out = np.ones(4), torch.empty(40, dtype=torch.float16)

    def flags(parent: Tensor, base: Tensor, least: float) -> int:
        return take_important(Span.of(parent), Span.of(base), own, 10, least, Span.of(out))

    assert flags(parent, base, 1e7) == 0
    assert flags(parent, base, 1.0) == OVERFLOW
    assert flags(bad, base, 1e7) == flags(parent, bad, 1e300) == NOT_FINITE
    assert np.isnan(divergences(Span.of(bad), Span.of(base), 20)).tolist() == [False, True]


def fused(parent: Tensor, base: Tensor) -> Tensor:
    return merge([{"w": parent}], ArceeFusion(), base={"w": base})["w"]


def defined(parent: Tensor, base: Tensor) -> Tensor:
    """The method's definition, with a sort."""
    length = base.shape[-1] if base.ndim else 1
    own = torch.from_numpy(divergences(Span.of(parent), Span.of(base), length))
    size = (parent.float() - base.float()).abs().reshape(-1, length).double()
    important = (size * own[:, None]).float().reshape(base.shape)
    order = important.flatten().sort().values.double()
    low, middle, high = (order[int(share * (order.numel() - 1))] for share in (0.25, 0.5, 0.75))
    least = (middle + 1.5 * (high - low)).float()
    return torch.where(important >= least, parent, base)


SHAPES = [
    (),
    (1,),
    (3,),
    (2, 2),
    (77, 130),
    (40, 6, 3, 3),
    (9000, 1),
    (2 * SAMPLE + 5,),
    (1500, 300),
    (90_000, 5),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["changed", "sparse", "uneven"])
def test_thresholds_are_exact(shape: tuple[int, ...], kind: str) -> None:
    base, change = 0.05 * normal(*shape), 1e-3 * normal(*shape, seed=1)
    if kind == "sparse":
        change = change * (normal(*shape, seed=2) > 1)
    if kind == "uneven" and shape:
        change = (
            change
            * torch.linspace(0, 3, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1)) ** 3
        )
    base, parent = base.bfloat16(), (base + change).bfloat16()
    assert torch.equal(fused(parent, base), defined(parent, base))


def test_wide_storage_takes_what_narrow_storage_takes() -> None:
    base = 0.05 * normal(300, 200).float()
    parent = base + 1e-3 * normal(300, 200, seed=1).float()
    assert torch.equal(fused(parent.double(), base.double()), fused(parent, base).double())


def test_a_large_tensor_is_surveyed_in_two_rounds() -> None:
    base = 0.05 * normal(1500, 300).float()
    block = Block.of([base + 1e-3 * normal(1500, 300, seed=1).float()], base)
    survey = ArceeFusion().kernel(block.case).survey
    assert survey is not None
    rounds, total, passes = survey(1500 * 300), None, 0
    with pytest.raises(StopIteration):
        while True:
            total, passes = rounds.send(total).measure(block), passes + 1  # type: ignore[arg-type]
    assert passes == 2
