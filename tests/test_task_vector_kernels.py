"""The kernel of task vectors: compiled and torch arithmetic give the same bits, whatever cancels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from merge_models.merge.kernels import task_vectors
from merge_models.merge.kernels.blocks import NOT_FINITE, OVERFLOW
from merge_models.merge.kernels.task_vectors import Mixing, Rule, Thinned, energies, mix_into

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


def mixed(stored: list[Tensor], base: Tensor, thinned: list[Thinned], mixing: Mixing, target: torch.dtype):
    out = torch.full_like(base, 7.0, dtype=target)
    flags = mix_into(stored, base, thinned, mixing, out)
    return out.view(torch.int16 if target.itemsize == 2 else torch.int32), flags


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("rule", list(Rule))
def test_compiled_and_torch_kernels_agree_to_the_bit(
    rule: Rule, normalize: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task_vectors._library() is None:
        pytest.skip("no compiled kernels here")
    for count in (1, 2, 3, 5):
        stored, base = parents(count, dtype)
        scale = torch.rand(COUNT, generator=torch.Generator().manual_seed(0))
        for thinned in (
            [Thinned()] * count,
            [Thinned(low=1 << 28, draw=((1, 2, 3), 0.6), scale=scale)] * count,
        ):
            for factors in ((1 / count,) * count, WEIGHTS[:count], (1e6,) * count):
                mixing = Mixing(rule, factors, factors, (1.5,) * count, normalize, 2, 0.9)
                for target in (dtype, torch.float32):
                    compiled, flags = mixed(stored, base, thinned, mixing, target)
                    with monkeypatch.context() as patch:
                        patch.setattr(task_vectors, "_library", lambda: None)
                        plain, wanted = mixed(stored, base, thinned, mixing, target)
                    assert torch.equal(compiled, plain) and flags == wanted


@pytest.mark.parametrize("rule", [Rule.SUM, Rule.ELECT])
def test_equal_parents_come_back_equal_where_the_base_is_far_larger(rule: Rule) -> None:
    parent = torch.cat([torch.logspace(-30, 3, COUNT - 2), torch.tensor([0.0, -0.0])])
    stored = [parent] * 3
    for weights in ((0.5, 0.3, 0.2), (1 / 3,) * 3, (100.0, -199.0, 100.0)):
        out = torch.empty(COUNT)
        normalize = rule is Rule.ELECT
        mixing = Mixing(rule, weights, weights if normalize else None, normalize=normalize)
        mix_into(stored, torch.full((COUNT,), 1e3), [Thinned()] * 3, mixing, out)
        if min(weights) > 0 or rule is Rule.SUM:
            assert torch.equal(out.view(torch.int32), parent.view(torch.int32))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_energies_are_sums_of_squares_of_what_is_finite(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(task_vectors, "_library", lambda: None)
    stored, base = parents(3, dtype)
    stored[1][5], stored[2][700] = float("nan"), float("inf")
    mask = torch.rand(COUNT, generator=torch.Generator().manual_seed(0)) < 0.6
    for chosen in (None, mask):
        wanted = [(tensor.double() - base.double()).square() for tensor in stored]
        for squares in wanted:
            squares[~squares.isfinite() | (torch.zeros(COUNT) if chosen is None else ~chosen).bool()] = 0
        sums = torch.stack([squares.sum() for squares in wanted])
        torch.testing.assert_close(energies(stored, base, chosen), sums, rtol=1e-13, atol=0)


@pytest.mark.parametrize("native", [True, False])
def test_what_is_not_finite_is_told_apart(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(task_vectors, "_library", lambda: None)
    base, fine = torch.ones(300), torch.full((300,), 2.0)
    bad = fine.clone()
    bad[299] = float("inf")
    rule, out = Mixing(Rule.SUM, (1.0, 1.0)), torch.empty(300, dtype=torch.float16)
    assert mix_into([fine, fine], base, [Thinned()] * 2, rule, out) == 0
    assert mix_into([fine, bad], base, [Thinned()] * 2, rule, out) == NOT_FINITE
    assert mix_into([fine, fine], bad, [Thinned()] * 2, rule, out) == NOT_FINITE
    large = Mixing(Rule.SUM, (1e5, 1.0))
    assert mix_into([fine, fine], base, [Thinned()] * 2, large, out) == OVERFLOW
