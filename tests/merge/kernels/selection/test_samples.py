"""Samples that surveys begin with: where their runs lie, and that they are the same however they are read."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import iadd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from merge_models.merge import merge
from merge_models.merge.checkpoint import Checkpoint, open_checkpoint
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case, Inputs, TensorSpec
from merge_models.merge.kernels.selection.samples import RUN, run_starts, take_sample, thinned
from merge_models.merge.planning.task import Ref, Task
from merge_models.merge.running.pieces import Piece
from merge_models.merge.running.reading import BlockReader, Buffers
from merge_models.merge.strategies import Ties
from merge_models.merge.strategies.families.blocks import copy_kernel
from tests.helpers import write_folder

COUNT, BLOCK = 40_000, 1 << 13


@pytest.mark.parametrize("count", [1, RUN - 1, RUN, 1000, 1 << 18, (1 << 18) - 77])
@pytest.mark.parametrize("every", [32, 500, 4096])
def test_runs_lie_in_their_block_and_apart(count: int, every: int) -> None:
    blocks = 40
    sizes = [len(starts := run_starts(count, number, every)) for number in range(blocks)]
    for number in range(blocks):
        starts = run_starts(count, number, every)
        assert np.all(np.diff(starts) >= RUN) and np.all(starts >= 0) and np.all(starts + RUN <= count)
    wanted = blocks * count / (RUN * every) if count >= RUN else 0
    assert abs(sum(sizes) - wanted) <= 1 and max(sizes) - min(sizes) <= 1


def test_runs_wander_over_the_columns_of_a_matrix() -> None:
    """Though as many rows as runs make a block, so that even steps would stay in one column."""
    starts = run_starts(1 << 18, 3, 32)
    columns = starts % ((1 << 18) // len(starts))
    assert len(np.unique(columns // RUN)) > 15


def model(place: Path, seed: int, dtype: torch.dtype) -> Path:
    values = torch.randn(COUNT, generator=torch.Generator().manual_seed(seed))
    return write_folder(place, {"w": values.to(dtype)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("blocks_held", [0, 2, 9])
def test_a_sample_is_the_same_held_or_not(blocks_held: int, dtype: torch.dtype, tmp_path: Path) -> None:
    models = [open_checkpoint(model(tmp_path / f"m{n}", n, dtype)) for n in range(2)]
    info = [source.tensors["w"] for source in models]
    refs = [Ref(n, own) for n, own in enumerate(info)]
    inputs = Inputs((refs[0],), refs[1])
    case = Case("w", inputs.map(lambda ref: TensorSpec("w", (COUNT,), ref.info.dtype)), info[0].dtype)
    task = Task(case, inputs, copy_kernel(case), None)
    nbytes = info[0].nbytes
    reader = BlockReader(models, blocks_held * 2 * BLOCK * info[0].dtype.size, None)
    taking, pieces = take_sample(COUNT), []
    every = next(taking).every
    assert every is not None
    sampled = []
    for number, start in enumerate(range(0, COUNT, BLOCK)):
        pieces.append(Piece(task, number, start, min(start + BLOCK, COUNT)))
        sampled.append(reader.to_sample(pieces[-1], every))
    whole = [m.read(m.tensors["w"], 0, nbytes, np.empty(nbytes, np.uint8)) for m in models]
    for block in sampled:
        assert block.places is not None and block.base_span is not None
        for span, data in zip((*block.spans, block.base_span), whole, strict=True):
            values = data.reshape(COUNT, -1)
            wanted = [values[place : place + RUN] for place in block.places]
            assert np.array_equal(span.data, np.concatenate([*wanted, values[:0]]).reshape(-1))
    assert sum(block.spans[0].count for block in sampled) == pytest.approx(COUNT / every, abs=RUN)
    for piece in pieces:  # what is held is what is in the files
        spans, at = reader.to_write(piece, Buffers()), info[0].dtype.size
        assert np.array_equal(spans.parents[0].data, whole[0][piece.start * at : piece.stop * at])
        reader.release(piece)


def test_a_sample_of_models_of_several_dtypes_is_one_block() -> None:
    values = [torch.randn(40 * RUN, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    types = (torch.bfloat16, torch.float16, torch.float32)
    blocks = [Block.of([v.to(t)], v) for v, t in zip(values, types, strict=True)]
    taking = take_sample(1 << 18)
    passing = next(taking)
    assert passing.every is not None
    parts = [thinned(replace(block, number=n), passing.every) for n, block in enumerate(blocks)]
    total = reduce(iadd, [passing.measure(part)[0] for part in parts])
    with pytest.raises(StopIteration) as done:
        taking.send((total,))
    joined: Block = done.value.value
    own = torch.cat([part.stored[0].float() for part in parts])
    base = torch.cat([part.stored_base for part in parts if part.stored_base is not None])
    assert (
        joined.places is not None
        and joined.stored_base is not None
        and len(own) == RUN * len(joined.places) > 0
    )
    assert torch.equal(joined.stored[0], own) and torch.equal(joined.stored_base, base)


def test_the_whole_task_vector_is_read_twice_and_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut over the whole model: a sample, one round, and combining; with the cut of a sort."""
    paths = [model(tmp_path / f"m{n}", n, torch.float32) for n in range(3)]
    monkeypatch.setattr("merge_models.merge.planning.task.BLOCK_ELEMENTS", BLOCK)
    monkeypatch.setattr("merge_models.merge.kernels.selection.samples.SAMPLE", COUNT - 1)
    fetch, read = Checkpoint.read, []

    def counted(self: Checkpoint, info: Any, start: int, stop: int, buffer: Any) -> Any:
        read.append(stop - start)
        return fetch(self, info, start, stop, buffer)

    monkeypatch.setattr("merge_models.merge.running.memory.HOLD_BYTES", 0)
    monkeypatch.setattr(Checkpoint, "read", counted)
    merge(paths[:2], Ties(scope="model", density=0.25), base=paths[2], out=tmp_path / "out", threads=2)
    assert 2 * 3 * 4 * COUNT < sum(read) < 2.1 * 3 * 4 * COUNT
    base, deltas = tensor_of(paths[2]), [tensor_of(path) - tensor_of(paths[2]) for path in paths[:2]]
    kept = []
    for delta in deltas:
        order = delta.abs().argsort(descending=True, stable=True)[: COUNT // 4]
        kept.append(torch.zeros_like(delta).index_copy(0, order, delta[order]))
    sign = torch.where(kept[0] + kept[1] >= 0, 1.0, -1.0)
    agree = [torch.where(k * sign > 0, k, torch.zeros_like(k)) for k in kept]
    number = (agree[0] != 0).double() + (agree[1] != 0)
    wanted = base.double() + (agree[0].double() + agree[1]) / number.clamp(min=1)
    assert torch.allclose(tensor_of(tmp_path / "out").double(), wanted, rtol=0, atol=1e-6)


def tensor_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["w"]
