"""The kernel of task vectors: compiled and torch arithmetic give the same bits, whatever cancels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import TensorSpec
from merge_models.merge.contract.kernel import Mixer
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.keys import keys_of
from merge_models.merge.kernels.task_vectors import mix_into, norms, variance
from merge_models.merge.kernels.terms import ALL_KEYS, Mixing, Ranked, Rule, Thinned
from merge_models.merge.kernels.torch_task_vectors import mixed_words
from merge_models.merge.strategies.della import Della
from merge_models.merge.strategies.stochastic import Stochastic
from tests.helpers import write_models

COUNT = 3000
WEIGHTS = (0.5, 0.3, -0.2, 0.4, 0.1)


def parents(count: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Siblings, among whose elements are zeros of both signs, equal ones, and ones that cancel the base."""
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(COUNT, generator=generator)
    found = [base * (1 + 0.1 * torch.randn(COUNT, generator=generator)) for _ in range(count)]
    for parent in found:
        parent[:20], parent[20:60] = -0.0, 1e-12
        parent[60:90] = base[60:90] * 1e-4
    base[:10], base[30:40] = 0.0, 0.0
    return [parent.to(dtype) for parent in found], base.to(dtype)


def spans(tensors: list[Tensor]) -> list[Span]:
    return [Span.of(tensor) for tensor in tensors]


def mixed(stored: list[Tensor], base: Tensor, thinned: list[Thinned], mixing: Mixing, target: torch.dtype):
    out = torch.full_like(base, 7.0, dtype=target)
    flags = mix_into(spans(stored), Span.of(base), thinned, mixing, Span.of(out))
    return out.view(torch.int16 if target.itemsize == 2 else torch.int32), flags


@contextmanager
def without_compiled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rule", list(Rule))
def test_compiled_and_torch_kernels_agree_to_the_bit(rule: Rule, normalize: bool, dtype: torch.dtype) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")
    for count in (1, 2, 3, 4, 5):
        stored, base = parents(count, dtype)
        varied = int(np.median(keys_of(variance(spans(stored)), None)))
        middle = int(np.median(keys_of(Span.of(stored[0]), Span.of(base))))
        for thinned in (
            [Thinned()] * count,
            [Thinned(low=1 << 28, draw=((1, 2, 3), 0.6))] * count,
            [Thinned(low=varied + 1, keep=9, varied=True)] * count,
            [Thinned(draw=Ranked((1, 2, 3), 300, 0.2, 0.9, inverse=True)), Thinned(high=varied, varied=True)]
            * count,
            [Thinned(draw=Ranked((1, 2, 3), 50, 0.2, 0.9, inverse=False))] * count,
            [Thinned(move=1e-2), Thinned(low=middle, move=1e-4)] * count,
            [Thinned(low=middle + 1, high=ALL_KEYS, keep=2), Thinned(high=middle + 1, drop=1)] * count,
        ):
            thinned = thinned[:count]
            for factors in ((1 / count,) * count, WEIGHTS[:count], (1e6,) * count):
                mixing = Mixing(rule, factors, factors, (1.5,) * count, normalize, 2, 0.9)
                for target in (dtype, torch.float32):
                    fast, flags = mixed(stored, base, thinned, mixing, target)
                    with without_compiled():
                        plain, wanted = mixed(stored, base, thinned, mixing, target)
                    assert torch.equal(fast, plain) and flags == wanted


@pytest.mark.parametrize("compiled_too", [True, False])
def test_the_beginning_of_a_block_mixes_as_the_block_does(compiled_too: bool) -> None:
    stored, base = parents(2, torch.bfloat16)
    varied = int(np.median(keys_of(variance(spans(stored)), None)))
    thinned = [Thinned(draw=((1, 2, 3), 0.6)), Thinned(low=varied + 1, keep=9, varied=True)]
    mixing = Mixing(Rule.SUM, (0.5, 0.4))
    with nullcontext() if compiled_too else without_compiled():
        whole, _ = mixed(stored, base, thinned, mixing, torch.float32)
        head, _ = mixed([t[:100] for t in stored], base[:100], thinned, mixing, torch.float32)
    assert torch.equal(head, whole[:100])


@pytest.mark.parametrize("rule", [Rule.SUM, Rule.ELECT])
def test_equal_parents_come_back_equal_where_the_base_is_far_larger(rule: Rule) -> None:
    parent = torch.cat([torch.logspace(-30, 3, COUNT - 2), torch.tensor([0.0, -0.0])])
    stored = [parent] * 3
    for weights in ((0.5, 0.3, 0.2), (1 / 3,) * 3, (100.0, -199.0, 100.0)):
        out = torch.empty(COUNT)
        normalize = rule is Rule.ELECT
        mixing = Mixing(rule, weights, weights if normalize else None, normalize=normalize)
        base = Span.of(torch.full((COUNT,), 1e3))
        mix_into(spans(stored), base, [Thinned()] * 3, mixing, Span.of(out))
        if min(weights) > 0 or rule is Rule.SUM:
            assert torch.equal(out.view(torch.int32), parent.view(torch.int32))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("compiled_too", [True, False])
@pytest.mark.parametrize("rule", list(Rule))
def test_parents_equal_to_the_base_give_the_base(rule: Rule, compiled_too: bool, normalize: bool) -> None:
    """Bit for bit, zeros of both signs too, and where what multiplies the sum is infinite."""
    base = torch.cat([torch.logspace(-44, 38, COUNT - 2), torch.tensor([0.0, -0.0])])
    with nullcontext() if compiled_too else without_compiled():
        for count in (1, 3, 5):
            for factor, scale in ((1.0, 1.0), (-1e30, 1e30), (1e-300, 1e30), (0.5, -1e300)):
                factors = (factor,) * count
                mixing = Mixing(rule, factors, factors, (1.5,) * count, normalize, 2, scale)
                found, flags = mixed([base] * count, base, [Thinned()] * count, mixing, torch.float32)
                assert torch.equal(found, base.view(torch.int32)) and not flags


THINNED = [
    Thinned(),
    Thinned(low=1 << 28, high=1 << 30, keep=5, drop=7),
    Thinned(
        draw=((1, 2, 3), 0.6),
    ),
    Thinned(low=0x38000000, varied=True),
    Thinned(draw=Ranked((1, 2, 3), 150, 0.3, 0.8, inverse=True)),
]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_sums_over_what_is_finite_and_left(native: bool, dtype: torch.dtype) -> None:
    stored, base = parents(5, dtype)
    stored[1][5], stored[2][700] = float("nan"), float("inf")
    for squared in (False, True):
        wanted = []
        for tensor, part in zip(stored, THINNED, strict=True):
            delta = tensor.double() - base.double()
            sizes = torch.where(delta.isfinite(), delta.square() if squared else delta.abs(), 0.0)
            whole = sizes.sum() * (not squared)
            keys = keys_of(variance(spans(stored)), None) if part.varied else keys_of(*spans([tensor, base]))
            wanted.append((whole, (sizes * left(keys.tolist(), part)).sum()))
        with nullcontext() if native else without_compiled():
            found = torch.from_numpy(norms(spans(stored), Span.of(base), THINNED, squared))
        torch.testing.assert_close(found, torch.tensor(wanted).T, rtol=1e-13, atol=0)


def left(keys: list[int], part: Thinned) -> Tensor:
    """What is left, element by element, by the words of :class:`Thinned`."""
    kept = torch.zeros(COUNT, dtype=torch.float64)
    keep, drop = part.keep, part.drop
    chances = np.ones(COUNT)
    words = torch.zeros(COUNT)
    if isinstance(part.draw, Ranked):
        words, chances = mixed_words(COUNT, part.draw.key), probabilities(keys, part.draw)
    elif part.draw is not None:
        words, chances = mixed_words(COUNT, part.draw[0]), np.full(COUNT, part.draw[1])
    for place, key in enumerate(keys):
        inside = part.low <= key < part.high
        if key == part.low - 1 and keep:
            inside, keep = True, keep - 1
        if key == part.high - 1 and drop:
            inside, drop = False, drop - 1
        kept[place] = inside and (int(words[place]) + 2**31) / 2**32 < float(chances[place])
    inverse = isinstance(part.draw, Ranked) and part.draw.inverse
    return kept * torch.from_numpy(np.float32(1) / chances.astype(np.float32)) if inverse else kept


def probabilities(keys: list[int], draw: Ranked) -> np.ndarray:
    """Of keeping each element, by :class:`Ranked`; float32 arithmetic, as the kernels'."""
    ranks = rankdata(np.reshape(keys, (-1, draw.columns)), axis=1).reshape(-1) - 1
    shares = (ranks / (draw.columns - 1)).astype(np.float32)
    found = shares * np.float32(draw.most - draw.least) + np.float32(draw.least)
    return found.astype(np.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variances_are_the_same_bits_in_torch(dtype: torch.dtype) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")

    for count in (1, 2, 3, 4, 5):
        stored, _ = parents(count, dtype)
        found = variance(spans(stored)).data
        with without_compiled():
            assert np.array_equal(found, variance(spans(stored)).data)
        exact = np.var([tensor.double().numpy() for tensor in stored], axis=0)
        np.testing.assert_allclose(found.view(np.float32), exact, rtol=1e-6, atol=1e-14)


LONG = 9360


def tuned(base: Tensor, kind: str) -> Tensor:
    """A fine-tune of a base, whose differences are few or many, alike or all different."""
    noise = torch.randn(LONG, generator=torch.Generator().manual_seed(7))
    if kind == "unchanged":
        return base.clone()
    if kind == "slightly":
        return base + 0.01 * noise * base.abs().mean()
    if kind == "a few alike":
        return torch.where(noise > 1.5, base + 0.5, base)
    if kind == "far and wide":
        return base * torch.exp(20 * noise)
    return noise  # "unrelated": nearly all differences need more bits than their storage has


@pytest.mark.parametrize("kind", ["unchanged", "slightly", "a few alike", "far and wide", "unrelated"])
@pytest.mark.parametrize(
    "types",
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.float8_e5m2),
    ],
    ids=lambda types: "-".join(str(t).removeprefix("torch.") for t in types),
)
def test_draws_by_rank_are_the_same_bits_in_torch(types: tuple[torch.dtype, torch.dtype], kind: str) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")
    wide = torch.randn(LONG, generator=torch.Generator().manual_seed(3))
    base, source = wide.to(types[1]), tuned(wide, kind).clamp(-400, 400).to(types[0])
    for columns in (1, 3, 52, 65, 312, 1560, 4680, 9360):
        for inverse in (False, True):
            thinned = [Thinned(draw=Ranked((4, 5, 6), columns, 0.3, 0.7, inverse))]
            fast, flags = mixed([source], base, thinned, Mixing(Rule.SUM, (0.7,)), torch.float32)
            with without_compiled():
                plain, wanted = mixed([source], base, thinned, Mixing(Rule.SUM, (0.7,)), torch.float32)
            assert torch.equal(fast, plain) and flags == wanted == 0


def test_draws_by_rank_bear_what_is_not_finite() -> None:
    base, source = torch.zeros(300), torch.arange(300.0)
    source[7], source[8], source[200] = float("nan"), float("-inf"), float("inf")
    thinned = [Thinned(draw=Ranked((4, 5, 6), 300, 0.3, 0.7, inverse=True))]
    for dtype in (torch.bfloat16, torch.float32):
        _, flags = mixed([source.to(dtype)], base.to(dtype), thinned, Mixing(Rule.SUM, (0.7,)), torch.float32)
        assert flags == NOT_FINITE


class Heads:
    """An output that asks for the first elements of a block, and then for all of them."""

    spec, count = TensorSpec("weight", (30, 100), BY_CODE["F32"]), 3000

    def __init__(self) -> None:
        self.written: list[Tensor] = []

    def fill(self, mixer: Mixer) -> int:
        for count in (1, 99, 100, 150, 3000):
            self.written.append(torch.empty(count))
            assert mixer(Span.of(self.written[-1])) == 0
        return 0

    def take(self, values: Tensor) -> int:
        raise AssertionError("these strategies have block kernels")


@pytest.mark.parametrize("compiled_too", [True, False])
@pytest.mark.parametrize("strategy", [Della(density=0.5, epsilon=0.2), Stochastic(per="row")])
def test_the_beginning_of_rows_mixes_as_whole_rows_do(strategy: AbstractStrategy, compiled_too: bool) -> None:
    stored, base = parents(3, torch.bfloat16)
    *tunes, origin = [tensor.view(30, 100) for tensor in (*stored, base)]
    has_base = strategy.base_model is BaseModel.REQUIRED
    block = Block.of(tunes, origin if has_base else None, 0, "weight")
    heads = Heads()
    with nullcontext() if compiled_too else without_compiled():
        write = strategy.resolved(3).kernel(block.case).write
        assert write is not None and write(block, None, [heads]) == 0
    assert all(torch.equal(head, heads.written[-1][: len(head)]) for head in heads.written)


@pytest.mark.parametrize("native", [True, False])
def test_what_is_not_finite_is_told_apart(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(compiled, "library", lambda: None)
    base, fine = torch.ones(300), torch.full((300,), 2.0)
    bad = fine.clone()
    bad[299] = float("inf")
    rule, out = Mixing(Rule.SUM, (1.0, 1.0)), torch.empty(300, dtype=torch.float16)

    def flags(sources: list[Tensor], origin: Tensor, mixing: Mixing) -> int:
        return mix_into(spans(sources), Span.of(origin), [Thinned()] * 2, mixing, Span.of(out))

    assert flags([fine, fine], base, rule) == 0
    assert flags([fine, bad], base, rule) == NOT_FINITE
    assert flags([fine, fine], bad, rule) == NOT_FINITE
    assert flags([fine, fine], base, Mixing(Rule.SUM, (1e5, 1.0))) == OVERFLOW


TORCH_FREE = """
import sys
from merge_models.merge import merge
from merge_models.merge.strategies.registry import find_strategy
base, out, *parents = sys.argv[1:]
for number, (name, options) in enumerate({methods!r}):
    strategy = find_strategy(name)(**options)
    chosen = parents[:1] if name in ("nearswap", "arcee_fusion") else parents
    merge(chosen, strategy, base=None if name == "stochastic" else base, out=f"{{out}}/{{number}}")
    assert "torch" not in sys.modules, name
"""
METHODS = [
    ("ties", {"density": 0.5, "rescale": "l1"}),
    ("dare_ties", {"density": 0.5}),
    ("della", {"density": 0.5}),
    ("breadcrumbs", {"density": 0.8, "gamma": 0.1}),
    ("sce", {"select_topk": 0.5}),
    ("ramplus_tl", {}),
    ("consensus", {}),
    ("magmax", {}),
    ("nearswap", {}),
    ("arcee_fusion", {}),
    ("stochastic", {}),
    ("stochastic", {"per": "row"}),
]


def test_merges_of_task_vectors_do_without_torch(tmp_path: Path) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")
    folders = write_models(tmp_path, 4, torch.bfloat16)
    script = TORCH_FREE.format(methods=METHODS)
    command = [sys.executable, "-c", script, folders[0], str(tmp_path / "out"), *folders[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
