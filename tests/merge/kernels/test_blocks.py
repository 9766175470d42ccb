"""The block kernels against float64 formulas, for every dtype, and compiled against torch, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels import blocks, gram_moments, is_finite, weighted_sum

FLOATS = [code for code, dtype in BY_CODE.items() if dtype.is_float]
NARROW = [code for code in FLOATS if code != "F64"]
over_floats = pytest.mark.parametrize("code", FLOATS)


@pytest.fixture(params=["as installed", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test with the kernels of this machine, and with those for machines without a compiler."""
    if request.param == "torch":
        monkeypatch.setattr(blocks, "native_library", lambda: None)
    yield request.param


def torch_dtype(code: str) -> torch.dtype:
    return getattr(torch, BY_CODE[code].torch_name)


def span(tensor: Tensor) -> Span:
    dtype = next(d for d in BY_CODE.values() if getattr(torch, d.torch_name) == tensor.dtype)
    return Span(tensor.contiguous().view(torch.uint8).numpy().copy(), dtype)


def empty(code: str, count: int) -> Span:
    return Span(np.full(count * BY_CODE[code].size, 0xAA, dtype=np.uint8), BY_CODE[code])


def every_pattern(code: str) -> Tensor:
    """Every finite value of a format of up to 16 bits; of a wider one, its corners and random bits."""
    dtype, size = torch_dtype(code), BY_CODE[code].size
    if size <= 2:
        values = torch.from_numpy(np.arange(1 << (8 * size), dtype=f"u{size}").view(np.uint8)).view(dtype)
    else:
        bits = np.random.default_rng(0).integers(0, 256, 4096 * size, dtype=np.uint8)
        limits = torch.finfo(dtype)
        corners = [0.0, -0.0, limits.max, limits.min, limits.tiny, limits.tiny / 4, -limits.tiny / 2, 1.0]
        values = torch.cat([torch.from_numpy(bits).view(dtype), torch.tensor(corners, dtype=dtype)])
    return values[torch.isfinite(values.double())]


def random_values(code: str, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64).to(torch_dtype(code))


def formula(sources: Sequence[Tensor], weights: Sequence[float]) -> np.ndarray:
    """The weighted sum in float64, source after source."""
    total = sources[0].double().numpy() * weights[0]
    for source, weight in zip(sources[1:], weights[1:], strict=True):
        total = total + source.double().numpy() * weight
    return total


def assert_bits(out: Span, expected: Tensor, where: object = "") -> None:
    stored = expected.contiguous().view(torch.uint8).numpy() if len(expected) else np.empty(0, np.uint8)
    assert out.data.tobytes() == stored.tobytes(), where


@over_floats
def test_weight_one_gives_every_value_back(code: str, kernels: str) -> None:
    values = every_pattern(code)
    out = empty(code, len(values))
    assert weighted_sum([span(values)], [1.0], out) == 0
    assert_bits(out, values)


@over_floats
def test_every_value_converts_as_torch_converts_it(code: str, kernels: str) -> None:
    values = every_pattern(code)
    for target in FLOATS:
        expected = values.double().to(torch_dtype(target))
        fits = torch.isfinite(expected.double())
        out = empty(target, int(fits.sum()))
        assert weighted_sum([span(values[fits])], [1.0], out) == 0
        assert_bits(out, expected[fits], target)


@over_floats
@pytest.mark.parametrize("count", [0, 1, 513, 1500])
def test_sums_are_the_float64_formula_rounded_once(code: str, count: int, kernels: str) -> None:
    sources = [random_values(code, count, seed) for seed in range(3)]
    weights = [0.7, -0.2, 1 / 3]
    for target in NARROW:
        out = empty(target, count)
        assert weighted_sum([span(s) for s in sources], weights, out) == 0
        assert_bits(out, torch.from_numpy(formula(sources, weights)).to(torch_dtype(target)), target)


def test_sources_of_all_dtypes_mix(kernels: str) -> None:
    sources = [random_values(code, 700, seed) for seed, code in enumerate(FLOATS)]
    weights = [0.3, 0.1, -0.4, 0.25, 0.05, 0.6]
    for target in NARROW:
        out = empty(target, 700)
        assert weighted_sum([span(s) for s in sources], weights, out) == 0
        assert_bits(out, torch.from_numpy(formula(sources, weights)).to(torch_dtype(target)), target)


@pytest.mark.parametrize("code", ["F16", "BF16"])
def test_ties_go_to_even(code: str, kernels: str) -> None:
    """Halfway between neighbours, and the nearest float32 on either side, over the whole range."""
    values = every_pattern(code).double().unique()
    halves = ((values[1:] + values[:-1]) / 2).float()
    around = torch.cat([halves, *(torch.nextafter(halves, torch.tensor(s * torch.inf)) for s in (1, -1))])
    expected = around.to(torch_dtype(code))
    even = halves.to(torch_dtype(code)).view(torch.int16)
    assert bool((even & 1 == 0).all())
    out = empty(code, len(around))
    assert weighted_sum([span(around)], [1.0], out) == 0
    assert_bits(out, expected)


def test_float64_sums_are_correctly_rounded(kernels: str) -> None:
    sources = [random_values("F64", 300, seed) for seed in range(4)]
    sources[3] = -sources[0] * 1.1  # so that sums cancel
    weights = [0.7, -1e-3, 1 / 3, 0.6]
    out = empty("F64", 300)
    assert weighted_sum([span(s) for s in sources], weights, out) == 0
    exact = [
        float(sum(Fraction(x) * Fraction(w) for x, w in zip(row, weights, strict=True)))
        for row in zip(*(s.tolist() for s in sources), strict=True)
    ]
    assert out.tensor().tolist() == exact


@over_floats
def test_mean_of_equal_sources_is_the_source(code: str, kernels: str) -> None:
    values = every_pattern(code)
    if code == "F64":  # the ends of its range leave no room for the rounding errors that are carried along
        values = values[(values.abs() > 1e-270) & (values.abs() < 1e270)]
    stored, out = span(values), empty(code, len(values))
    for count in (2, 3, 7, 10):
        assert weighted_sum([stored] * count, [1 / count] * count, out) == 0
        assert_bits(out, values, count)


@over_floats
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_flagged_wherever_they_stand(code: str, bad: float, kernels: str) -> None:
    for place in (0, 511, 512, 999):
        values = random_values(code, 1000, 1)
        values[place] = bad
        if bool(torch.isfinite(values.double()).all()):  # F8_E4M3 has no Inf: torch stores its largest value
            values[place] = float("nan")
        fine = span(random_values(code, 1000, 2))
        assert not is_finite(span(values)) and is_finite(fine)
        assert weighted_sum([fine, span(values)], [0.5, 0.5], empty(code, 1000)) == blocks.NOT_FINITE
        assert weighted_sum([fine, span(values)], [1.0, 0.0], empty(code, 1000)) == 0


@pytest.mark.parametrize(
    ("target", "factor"), [("F32", 4e38), ("F16", 7e4), ("BF16", 4e38), ("F8_E5M2", 7e4)]
)
def test_overflow_is_told_from_bad_input(target: str, factor: float, kernels: str) -> None:
    values = torch.ones(600)
    assert weighted_sum([span(values)], [factor], empty(target, 600)) == blocks.OVERFLOW
    assert weighted_sum([span(values)], [factor / 100], empty(target, 600)) == 0


@pytest.mark.parametrize("code", NARROW)
def test_zero_weights_give_zero_and_keep_signs_of_zero(code: str, kernels: str) -> None:
    zeros = torch.tensor([0.0, -0.0]).to(torch_dtype(code))
    out = empty(code, 2)
    weighted_sum([span(zeros), span(zeros)], [0.0, 0.0], out)
    assert_bits(out, torch.zeros(2).to(torch_dtype(code)))
    weighted_sum([span(zeros), span(zeros)], [0.5, 0.5], out)
    assert_bits(out, zeros)


@over_floats
@pytest.mark.parametrize("count", [1, 9, 512, 1300])
def test_gram_moments_are_those_of_the_differences(code: str, count: int, kernels: str) -> None:
    reference = random_values(code, count, 0)
    sources = [
        (reference.double() + 1e-2 * random_values("F64", count, s)).to(reference.dtype) for s in (1, 2, 3)
    ]
    found = gram_moments(span(reference), [span(s) for s in sources])
    r = reference.double().numpy()
    differences = [s.double().numpy() - r for s in sources]
    pairs = [(differences[i], differences[j]) for i in range(3) for j in range(i, 3)]
    factors = [(r, r), *((r, d) for d in differences), *pairs]
    for value, (a, b) in zip(found, factors, strict=True):
        assert abs(value - np.dot(a, b)) <= 1e-15 * max(count, 8) * np.abs(a * b).sum()


def test_gram_moments_keep_the_geometry_of_near_equal_sources(kernels: str) -> None:
    """Differences of 1e-8 of the reference come out to 1e-6 of themselves; products first would lose them."""
    reference = random_values("F64", 4000, 0) + 3.0
    step = random_values("F64", 4000, 1)
    found = gram_moments(span(reference), [span(reference + 1e-8 * step)])
    exact = float(((reference + 1e-8 * step) - reference).square().sum())
    assert found[2] == pytest.approx(exact, rel=1e-6)
