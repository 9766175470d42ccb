"""Parameter competition: scores and shares against the formulas in float64, compiled and in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_models.merge import merge
from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.competition import compete_into, scores
from merge_models.merge.strategies import Pcb

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float64)


def task(count: int, parents: int, dtype: torch.dtype, spread: float = 0.05) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(count + parents)
    base = torch.randn(count, generator=generator)
    moved = [base + spread * torch.randn(count, generator=generator) for _ in range(parents)]
    return [m.to(dtype) for m in moved], base.to(dtype)


def scored(deltas: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The paper's scores over e^N, float64 ``[N, count]``."""
    low, high = sizes[:, :1], sizes[:, 1:]
    s = (np.clip(np.abs(deltas), low, high) - low) / np.where(high > low, high - low, 1)
    return np.maximum(np.exp(len(deltas) * (s**2 - 1)) * np.tanh(deltas * deltas.sum(0)), 0)


def competed(deltas: np.ndarray, sizes: np.ndarray, ratio: float, weights: np.ndarray) -> np.ndarray:
    """The mean of task vectors, weighted by the shares that the best scores give."""
    found = scored(deltas, sizes)
    least = np.sort(found, 1)[:, -math.ceil(ratio * found.shape[1]), None]
    width = found.max(1, keepdims=True) - least
    share = np.where(
        width > 0,
        np.maximum(found - least, 0) / np.where(width > 0, width, 1),
        (found >= least) & (found > 0),
    )
    clamped = np.clip(np.abs(deltas), *sizes.T[:, :, None]) * np.sign(deltas)
    total = share.sum(0)
    return (share * clamped * weights[:, None]).sum(0) / np.where(total > 0, total, 1)


def ends(deltas: np.ndarray) -> np.ndarray:
    """Least and largest sizes, but for 0.01% at either end."""
    sizes, extreme = np.sort(np.abs(deltas), 1), int(1e-4 * deltas.shape[1])
    return np.stack([sizes[:, extreme], sizes[:, -1 - extreme]], 1)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    ("count", "parents", "spread"), [(1, 1, 0.1), (777, 3, 0.05), (300, 5, 3.0), (513, 2, 1e-4)]
)
def test_scores_are_the_formula(dtype: torch.dtype, count: int, parents: int, spread: float) -> None:
    stored, base = task(count, parents, dtype, spread)
    deltas = np.stack([(p.double() - base.double()).numpy() for p in stored])
    sizes = np.quantile(np.abs(deltas), (0.1, 0.9), axis=1).T.astype(np.float32).astype(np.float64)
    found = scores([Span.of(p) for p in stored], Span.of(base), [(low, high) for low, high in sizes.tolist()])
    values = np.stack([span.tensor().double().numpy() for span in found])
    wanted = scored(deltas, sizes)
    assert values == pytest.approx(wanted, rel=4e-6 if dtype != torch.float64 else 1e-7, abs=1e-37)


@pytest.mark.parametrize("dtype", TYPES[:4], ids=str)
@pytest.mark.parametrize("target", ["F32", "BF16", "F16"])
@pytest.mark.parametrize(
    ("count", "parents", "spread"), [(1, 1, 0.1), (777, 3, 0.05), (300, 5, 30.0), (513, 2, 0)]
)
def test_compiled_and_torch_give_the_same_bytes(
    dtype: torch.dtype, target: str, count: int, parents: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")
    stored, base = task(count, parents, dtype, spread)
    spans, origin = [Span.of(p) for p in stored], Span.of(base)
    sizes, marks = [(0.01 * n, 0.1) for n in range(parents)], [(1e-5 * n, 2e-3) for n in range(parents)]
    weights = [0.5 + n for n in range(parents)]

    def computed() -> tuple[list[bytes], int, bytes]:
        own = [span.data.tobytes() for span in scores(spans, origin, sizes)]
        out = Span(np.empty(count * BY_CODE[target].size, np.uint8), BY_CODE[target])
        flags = compete_into(spans, origin, sizes, marks, weights, 0.7, out)
        return own, flags, out.data.tobytes()

    fast = computed()
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert computed() == fast


@pytest.mark.parametrize("native", [True, False])
def test_what_is_not_finite_is_told(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(compiled, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("no compiled kernels here")

    def flags(parent: float, base: float, scale: float) -> int:
        out = Span(np.empty(2 * 40, np.uint8), BY_CODE["F16"])
        spans = [Span.of(torch.full((40,), value)) for value in (parent, base)]
        return compete_into(spans[:1], spans[1], [(0.0, 1.0)], [(0.0, 1e-9)], [1.0], scale, out)

    assert flags(1.5, 1.0, 1.0) == 0
    assert flags(math.nan, 1.0, 1.0) == flags(1.0, math.inf, 1.0) == NOT_FINITE
    assert flags(1.5, 1.0, 1e9) == OVERFLOW


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize(
    "shapes", [((1,), (3,), (50, 4)), ((40_000,), (7,), (300, 11)), ((150_001,), (9,))], ids=str
)
def test_a_merge_is_the_formula(scope: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
    names = [f"t{n}" for n in range(len(shapes))]
    count = [math.prod(shape) for shape in shapes]
    parents, base = task(sum(count), 3, torch.float32)
    states = [
        {n: part.view(s) for n, part, s in zip(names, flat.split(count), shapes, strict=True)}
        for flat in (*parents, base)
    ]
    weight = (0.5, 1.0, 2.0)
    merged = merge(states[:3], Pcb(ratio=0.15, scope=scope, lambda_=0.8, weight=weight), base=states[3])
    deltas = np.stack([(p - base).double().numpy() for p in parents])
    parts = [deltas] if scope == "model" else np.split(deltas, np.cumsum(count)[:-1], axis=1)
    mean = np.concatenate([competed(part, ends(part), 0.15, np.array(weight)) for part in parts])
    found = torch.cat([merged[name].reshape(-1) for name in names]).double().numpy()
    wanted = base.double().numpy() + 0.8 * mean
    assert np.abs(found - wanted).max() < 2e-6
