"""The k largest of a stream: cuts by samples and by rounds of histograms, against a stable sort."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from operator import iadd

import numpy as np
import pytest
import torch
from torch import Tensor

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels import compiled
from merge_models.merge.kernels.keys import gather_keys, keys_of
from merge_models.merge.kernels.selection.cuts import Cut, Totals
from merge_models.merge.kernels.selection.samples import thinned
from merge_models.merge.kernels.selection.select import largest
from merge_models.merge.strategies.families.trimming import deltas_of

BLOCK = 1 << 16
COUNT = 5 * BLOCK - 123


def siblings(kind: str) -> tuple[list[Tensor], Tensor]:
    """A base and two parents; ``drifting`` ones change more and more, ``stepped`` ones by few values."""
    generator = torch.Generator().manual_seed(1)
    base = 0.02 * torch.randn(COUNT, generator=generator)
    parents = []
    for _ in range(2):
        change = 0.002 * torch.randn(COUNT, generator=generator)
        if kind == "drifting":
            change *= torch.linspace(0.0, 10, COUNT) ** 2
        if kind == "sparse":
            change *= torch.rand(COUNT, generator=generator) < 0.3
        if kind == "stepped":
            change = (change * 700).round() / 700
        parents.append(base + change)
    return (parents, base) if kind == "wide" else ([p.bfloat16() for p in parents], base.bfloat16())


def blocks_of(parents: list[Tensor], base: Tensor) -> list[Block]:
    blocks = []
    for number, at in enumerate(range(0, COUNT, BLOCK)):
        own, origin = [p[at : at + BLOCK] for p in parents], base[at : at + BLOCK]
        blocks.append(replace(Block.of(own, origin, at), number=number))
    return blocks


def keys(parent: Tensor, base: Tensor) -> np.ndarray:
    return keys_of(Span.of(parent), Span.of(base))


def chosen(cut: Cut, block: np.ndarray, number: int) -> np.ndarray:
    """Which keys of a block are within a cut."""
    ties = block == cut.least(number) - 1
    return (block >= cut.least(number)) | (ties & (ties.cumsum() <= cut.ties(number)))


def measured(passing: Pass, blocks: list[Block]) -> Moments:
    """A round's total."""
    every = passing.every
    parts = [passing.measure(block if every is None else thinned(block, every)) for block in blocks]
    return tuple(reduce(iadd, moments) for moments in zip(*parts, strict=True))


def found(blocks: list[Block], sizes: list[list[int]], elements: int) -> tuple[list[list[Cut]], int]:
    """The cuts, and how many rounds they took."""
    rounds, total, passes = largest(2, partial(deltas_of, range(2)), lambda _: sizes, elements), None, 0
    try:
        while True:
            total, passes = measured(rounds.send(total), blocks), passes + 1  # type: ignore[arg-type]
    except StopIteration as done:
        return done.value, passes


@pytest.mark.parametrize("kind", ["wide", "narrow", "drifting", "sparse", "stepped"])
@pytest.mark.parametrize(
    "sizes", [(COUNT // 2, COUNT // 5), (COUNT - 3000, 3000), (1, COUNT - 1), (0, COUNT), (70, COUNT - 70)]
)
def test_cuts_choose_what_a_stable_sort_puts_first(kind: str, sizes: tuple[int, int]) -> None:
    parents, base = siblings(kind)
    blocks = blocks_of(parents, base)
    for elements in (0, COUNT):
        cuts, passes = found(blocks, [list(sizes)] * 2, elements)
        assert passes <= (4 if elements == 0 else 6)
        for parent, row in zip(parents, cuts, strict=True):
            own = keys(parent, base)
            order = np.argsort(-own, kind="stable")
            for size, cut in zip(sizes, row, strict=True):
                wanted = np.zeros(COUNT, bool)
                wanted[order[:size]] = True
                parts = np.split(own, range(BLOCK, COUNT, BLOCK))
                marks = [chosen(cut, part, number) for number, part in enumerate(parts)]
                assert np.array_equal(np.concatenate(marks), wanted)


@pytest.mark.parametrize("kind", ["wide", "narrow", "drifting", "sparse", "stepped"])
def test_brackets_that_hold_much_are_made_narrower(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round more, and the same cuts."""
    blocks, sizes = blocks_of(*siblings(kind)), [[COUNT // 3, COUNT // 100], [1, COUNT]]
    cuts, passes = found(blocks, sizes, COUNT)
    monkeypatch.setattr("merge_models.merge.kernels.selection.brackets.LISTED", 0)
    assert found(blocks, sizes, COUNT) == (cuts, passes + 1)
    assert passes == 2


@pytest.mark.parametrize("kind", ["wide", "narrow", "sparse", "stepped"])
def test_a_sample_of_like_blocks_saves_the_third_round(kind: str) -> None:
    blocks = blocks_of(*siblings(kind))
    assert found(blocks, [[COUNT // 3, COUNT // 100]] * 2, COUNT)[1] == 2


@pytest.mark.parametrize("kind", ["wide", "stepped"])
def test_compiled_and_torch_kernels_gather_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.library() is None:
        pytest.skip("no compiled kernels here")
    parents, base = siblings(kind)
    middle = int(np.median(keys(parents[0], base)))
    windows = [[(middle, middle + 1), (middle - (1 << 20), middle + (1 << 22)), (5, 5)]] * 2
    spans, origin = [Span.of(parent) for parent in parents], Span.of(base)
    fast = gather_keys(spans, origin, windows, 1 << 19)
    monkeypatch.setattr(compiled, "library", lambda: None)
    plain = gather_keys(spans, origin, windows, 1 << 19)
    for name in ("within", "above", "positive"):
        assert np.array_equal(getattr(fast, name), getattr(plain, name))
    for ours, theirs in zip(fast.inside, plain.inside, strict=True):
        for tally, other in zip(ours, theirs, strict=True):
            assert np.array_equal(np.sort(np.repeat(*tally)), np.sort(np.repeat(*other)))


def test_totals_are_what_sizes_are_told() -> None:
    told: list[Totals] = []

    def sizes(totals: Totals) -> list[list[int]]:
        told.append(totals)
        return [[9], [9]]

    parents, base = siblings("sparse")
    blocks = blocks_of(parents, base)
    rounds = largest(2, partial(deltas_of, range(2)), sizes, COUNT)
    total = None
    with pytest.raises(StopIteration):
        while True:
            total = measured(rounds.send(total), blocks)  # type: ignore[arg-type]
    positive = tuple(int((keys(p, base) >= 1 << 19).sum()) for p in parents)
    assert told[-1] == Totals(COUNT, positive, len(blocks))
