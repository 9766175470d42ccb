"""Rounding to narrow formats by draws: exact against integers, right in the mean, the same everywhere."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_models.merge import MergeResult, RecipeError, merge
from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.span import OVERFLOW, Span
from merge_models.merge.kernels import rounding
from merge_models.merge.kernels.rounding import is_narrow, round_into, rounding_key, survival
from merge_models.merge.kernels.torch_task_vectors import mixed_words
from merge_models.merge.strategies import Karcher, Linear, TaskArithmetic, Ties
from tests.helpers import assert_same_bits, merge_folders, merge_states, write_folder

NARROW = ("BF16", "F16", "F8_E4M3", "F8_E5M2")
KEYS = [(1, 2, 3), (2**32 - 5, 77, 9)]


def torch_dtype(code: str) -> torch.dtype:
    return getattr(torch, BY_CODE[code].torch_name)


def awkward(count: int = 1 << 14) -> np.ndarray:
    """Float32 numbers of every kind: any bits, small ones, subnormal ones, and the edges of every format."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32).copy()
    for number, scale in enumerate((1e-6, 1e-3, 1.0, 300.0, 1e-7, 1e-39)):
        part = slice(number * count // 8, (number + 1) * count // 8)
        values[part] = (generator.normal(size=part.stop - part.start) * scale).astype(np.float32)
    edges = []
    for code in NARROW:
        info = torch.finfo(torch_dtype(code))
        for edge in (info.max, info.tiny, info.max * (1 + info.eps / 4), info.tiny * info.eps):
            edges += [edge, -edge, edge * (1 + 1e-6), edge * (1 - 1e-6), edge * 0.4]
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 3.4e38, *edges]
    values[: len(special)] = np.array(special, dtype=np.float64).astype(np.float32)
    return values


def rounded(values: np.ndarray, code: str, key: Any = None) -> Tensor:
    out = Span(np.empty(values.size * BY_CODE[code].size, np.uint8), BY_CODE[code])
    round_into(np.ascontiguousarray(values), out, key)
    return out.tensor()


def neighbours(value: float, code: str) -> tuple[Fraction, Fraction]:
    """The format's numbers at or below and above a magnitude, as exact fractions."""
    dtype = BY_CODE[code]
    lowest = {"BF16": -126, "F16": -14, "F8_E4M3": -6, "F8_E5M2": -14}[code]
    exact = Fraction(value)
    exponent = max(math.frexp(value)[1] - 1, lowest) if value else lowest
    step = Fraction(2) ** (exponent - dtype.significand + 1)
    below = (exact // step) * step
    return below, below + step


@pytest.mark.parametrize("code", NARROW)
@pytest.mark.parametrize("key", KEYS)
def test_draws_round_as_exact_arithmetic_says(code: str, key: Any) -> None:
    values = awkward()[:6000]
    words = (mixed_words(values.size, key).long() & 0xFFFFFFFF).tolist()
    found, nearest = rounded(values, code, key), rounded(values, code)
    largest = Fraction(torch.finfo(torch_dtype(code)).max)
    for value, word, got, near in zip(values.tolist(), words, found.tolist(), nearest.tolist(), strict=True):
        if not math.isfinite(value):
            assert got == near or (math.isnan(got) and math.isnan(near))
            continue
        below, above = neighbours(abs(value), code)
        share = math.floor((Fraction(abs(value)) - below) / (above - below) * 2**32)
        expected = above if share + word >= 2**32 else below
        if abs(value) >= largest:
            assert got == near or (math.isnan(got) and math.isnan(near))
        else:
            assert Fraction(abs(got)) == expected and math.copysign(1, got) == math.copysign(1, value)


@pytest.mark.parametrize("code", NARROW)
def test_compiled_and_torch_agree_to_the_bit(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = awkward(1 << 16)
    numbers = ~np.isnan(values)
    compiled = [rounded(values, code, key) for key in (None, *KEYS)]
    monkeypatch.setattr(rounding, "native_library", lambda: None)
    for key, found in zip((None, *KEYS), compiled, strict=True):
        other = rounded(values, code, key)
        assert_same_bits(found[torch.from_numpy(numbers)], other[torch.from_numpy(numbers)], key)
        assert torch.isnan(other.float())[torch.from_numpy(~numbers)].all()


@pytest.mark.parametrize("code", NARROW)
def test_the_mean_over_keys_is_the_value(code: str) -> None:
    """Five standard errors of 4096 draws of the same value, also between zero and the least number."""
    info, draws = torch.finfo(torch_dtype(code)), 4096
    for value in (1.0 + info.eps * 0.3, 1.0 + info.eps * 0.999, info.tiny * 1.01, info.tiny * info.eps * 0.2):
        exact = float(np.float32(value))
        found = rounded(np.full(draws, exact, np.float32), code, rounding_key(3, "x", 0)).double()
        below, above = (float(side) for side in neighbours(exact, code))
        share = (exact - below) / (above - below)
        error = (above - below) * math.sqrt(share * (1 - share) / draws)
        assert abs(float(found.mean()) - exact) <= 5 * error and set(found.tolist()) <= {below, above}
    assert bool((rounded(np.full(draws, -1.5, np.float32), code, (1, 2, 3)) == -1.5).all())


def test_draws_belong_to_seed_tensor_and_element() -> None:
    values = (1 + np.random.default_rng(0).random(5000) * 1e-2).astype(np.float32)
    whole = rounded(values, "BF16", rounding_key(1, "x", 0))
    for start, stop in itertools.pairwise((0, 1, 700, 701, 4096, 5000)):
        part = rounded(values[start:stop], "BF16", rounding_key(1, "x", start))
        assert_same_bits(part, whole[start:stop])
    for other in (rounding_key(2, "x", 0), rounding_key(1, "y", 0)):
        assert 0.2 < float((rounded(values, "BF16", other) != whole).float().mean()) < 0.6
    assert rounding_key(0, "\ud800", 2**33 + 1) == rounding_key(0, "\ud800", 1)


def test_overflow_is_told_as_for_nearest() -> None:
    for code, value, flags in (("F16", 65519.0, 0), ("F16", 65520.0, OVERFLOW), ("BF16", 3.4e38, OVERFLOW)):
        out = Span(np.empty(2, np.uint8), BY_CODE[code])
        for key in (None, (0, 0, 0), (2**32 - 1, 5, 5)):
            assert round_into(np.array([value], np.float32), out, key) == flags, (code, value)


@pytest.mark.parametrize("code", NARROW)
def test_survival_is_what_float64_says(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    dtype = torch_dtype(code)
    for reference_dtype in (dtype, torch.float32):
        base = torch.randn(3000, generator=generator).to(reference_dtype)
        values = (base.float() + 2e-3 * torch.randn(3000, generator=generator)).float()
        values[:100], values[100] = base[:100].float(), math.nan
        stored = values.to(dtype)
        change = (values.double() - base.double())[values.isfinite()]
        rest = (stored.double() - base.float().to(dtype).double())[values.isfinite()]
        error = (stored.double() - values.double())[values.isfinite()]
        counts = [float((change != 0).sum()), float(((change != 0) & (rest == 0)).sum())]
        expected = [float(change @ change), float(change @ rest), float(error @ error), *counts]
        reference = {torch.float32: "F32"}.get(reference_dtype, code)
        spans = [
            Span(t.view(torch.uint8).numpy(), BY_CODE[c]) for t, c in ((stored, code), (base, reference))
        ]
        for _ in range(2):
            np.testing.assert_allclose(survival(values.numpy(), *spans), expected, rtol=1e-12)
            monkeypatch.setattr(rounding, "native_library", lambda: None)
        monkeypatch.undo()


# Merges


State = dict[str, Tensor]


def light(count: int = 2, rows: int = 5000, step: float = 3e-4) -> tuple[State, list[State]]:
    """A base in bfloat16, and tunes of it in float32 that change less than a step of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(rows, 8, generator=generator).bfloat16()
    tunes = [base.float() + step * torch.randn(rows, 8, generator=generator) for _ in range(count)]
    return {"w": base}, [{"w": tune} for tune in tunes]


STRATEGIES = [Linear(), Karcher(), Karcher(per="row"), TaskArithmetic(weight=0.5), Ties(density=0.5)]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: f"{s.name}-{getattr(s, 'per', '')}")
@pytest.mark.parametrize("code", ["BF16", "F16", "F8_E4M3"])
def test_a_merge_rounds_its_float32_result(strategy: Any, code: str) -> None:
    base, tunes = light()
    given = {"base": base} if strategy.name in ("task_arithmetic", "ties") else {}
    wide = merge_states(tunes, strategy, **given)["w"]
    assert wide.dtype == torch.float32
    for rounds, key in (("nearest", None), ("stochastic", rounding_key(5, "w", 0))):
        options: Any = {"dtype": BY_CODE[code].torch_name, "rounding": rounds, "seed": 5, **given}
        found = [merge_states(tunes, strategy, threads=threads, **options)["w"] for threads in (1, 3)]
        assert_same_bits(found[0], found[1])
        assert_same_bits(found[0], rounded(wide.reshape(-1).numpy(), code, key).view(wide.shape), rounds)


def test_blocks_and_shards_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tunes = light()
    paths = [write_folder(tmp_path / n, {**t, "b": t["w"] + 1}) for n, t in zip("ab", tunes, strict=True)]
    options: Any = {"dtype": "bfloat16", "rounding": "stochastic", "seed": 3}
    first = merge_folders(paths, tmp_path / "first", **options)
    monkeypatch.setattr("merge_models.merge.planning.task.BLOCK_ELEMENTS", 1000)
    second = merge_folders(paths, tmp_path / "second", threads=3, shard_size=10_000, **options)
    for name, tensor in first.items():
        assert_same_bits(tensor, second[name], name)


def test_rounding_is_part_of_the_recipe_and_of_what_is_told(tmp_path: Path) -> None:
    base, tunes = light()
    place = write_folder(tmp_path / "base", base)
    paths = [write_folder(tmp_path / n, {"w": t["w"].bfloat16()}) for n, t in zip("ab", tunes, strict=True)]
    kept = {}
    for mode in ("nearest", "stochastic"):
        out = tmp_path / mode
        result = merge([*paths], TaskArithmetic(weight=0.3), base=place, out=out, rounding=mode)
        assert isinstance(result, MergeResult) and result.rounded is not None
        record = json.loads((out / "merge_manifest.json").read_text())
        assert record["recipe"].get("rounding", "nearest") == mode == record["rounding"]["mode"]
        assert record["rounding"]["kept"] == result.rounded.kept
        assert record["figures"]["w"]["delta_kept"] == result.figures["w"]["delta_kept"]
        kept[mode] = result.rounded
    assert abs(kept["stochastic"].kept - 1) < 0.1 < abs(kept["nearest"].kept - 1)
    assert kept["stochastic"].error > kept["nearest"].error > 0.1


def test_a_light_change_is_lost_to_nearest_and_kept_in_the_mean_by_draws() -> None:
    base, tunes = light(1)
    found = {}
    for mode in ("nearest", "stochastic"):
        given: Any = {"base": base, "dtype": "bfloat16", "rounding": mode}
        merged = merge_states(tunes, TaskArithmetic(weight=0.1), **given)["w"]
        change = 0.1 * (tunes[0]["w"].double() - base["w"].double())
        left = merged.double() - base["w"].double()
        found[mode] = (
            float((left * change).sum() / change.square().sum()),
            float((left == 0).double().mean()),
        )
    assert found["nearest"][0] < 0.75 and found["nearest"][1] > 0.9
    assert abs(found["stochastic"][0] - 1) < 0.15


def test_wide_outputs_are_never_drawn_and_nothing_is_told() -> None:
    base, tunes = light()
    for dtype in ("float32", "float64"):
        plain = merge_states(tunes, Linear(), dtype=dtype)
        drawn = merge_states(tunes, Linear(), dtype=dtype, rounding="stochastic")
        assert_same_bits(plain["w"], drawn["w"])
    assert {code for code in BY_CODE if is_narrow(BY_CODE[code])} == set(NARROW)


def test_equal_parents_come_back_equal_whatever_is_drawn() -> None:
    _, tunes = light(1)
    narrow = {"w": tunes[0]["w"].bfloat16()}
    strategy = Linear(weight=(0.5, 0.3, 0.2))
    assert_same_bits(merge_states([narrow] * 3, strategy, rounding="stochastic")["w"], narrow["w"])


def test_unknown_roundings_are_refused(tmp_path: Path) -> None:
    call: Any = merge
    for given in ({}, {"out": tmp_path / "out"}):
        models = [write_folder(tmp_path / "a", light()[0])] if given else [light()[0]]
        with pytest.raises(RecipeError, match="rounding is 'nearest' or 'stochastic', not 'up'"):
            call(models, Linear(), rounding="up", **given)
