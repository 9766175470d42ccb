"""Strategies that no merge of same-shaped tensors is: what the contract carries beyond means of parents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.sources.source import StateDict
from merge_models.merge.checkpoint.sources.wrapped import WrappedSource
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case, Inputs, TensorSpec
from merge_models.merge.contract.kernel import Grain, Kernel, Moments, Output, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.planning.assembly import Assembly, Assignment, Place
from merge_models.merge.planning.plan import Plan, make_plan
from merge_models.merge.running.engines import execute
from merge_models.merge.running.memory_sink import MemorySink
from merge_models.merge.running.options import RunOptions
from merge_models.merge.strategies.families.blocks import torch_kernel


@dataclass(frozen=True)
class Halved(AbstractStrategy):
    """Averages pairs of columns: the output has another shape."""

    name: ClassVar[str] = "halved"
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    def kernel(self, case: Case) -> Kernel:
        rows, columns = case.shape
        made = TensorSpec(case.name, (rows, columns // 2), case.dtype)
        return torch_kernel(case, _pair_means, grain=Grain.ROW, outputs=(made,))


def _pair_means(block: Block, survey: None) -> Tensor:
    del survey
    return (block.stored[0][:, 0::2].double() + block.stored[0][:, 1::2].double()) / 2


@dataclass(frozen=True)
class Split(AbstractStrategy):
    """Cuts a matrix into its left and its right half: two outputs of one task."""

    name: ClassVar[str] = "split"
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    def kernel(self, case: Case) -> Kernel:
        rows, columns = case.shape
        widths = {"left": columns // 2, "right": columns - columns // 2}
        made = tuple(TensorSpec(f"{case.name}.{side}", (rows, w), case.dtype) for side, w in widths.items())
        return Kernel(_write_halves, made, grain=Grain.ROW)


def _write_halves(block: Block, survey: None, outputs: Sequence[Output]) -> int:
    del survey
    cut = outputs[0].spec.columns
    return outputs[0].take(block.stored[0][:, :cut]) | outputs[1].take(block.stored[0][:, cut:])


@dataclass(frozen=True)
class ScaledByColumn(AbstractStrategy):
    """Multiplies the mean of the parents by one statistic a column, which every block sees whole."""

    name: ClassVar[str] = "scaled_by_column"

    def kernel(self, case: Case) -> Kernel:
        case.inputs["statistics"]  # asked for when planned, not when it runs
        return torch_kernel(case, _scaled, grain=Grain.ROW, whole=frozenset({"statistics"}))


def _scaled(block: Block, survey: None) -> Tensor:
    del survey
    (scale,) = block.inputs["statistics"]
    mean = torch.stack([x.double() for x in block.stored]).mean(0)
    return mean * scale.tensor().double()


@dataclass(frozen=True)
class ConstantRows(AbstractStrategy):
    """Makes rows of one number, of no parent at all."""

    name: ClassVar[str] = "constant_rows"
    parents: ClassVar[tuple[int, int | None]] = (0, 0)

    value: float = parameter(0.0, "the number")
    rows: int = parameter(1, "how many rows", minimum=1)
    columns: int = parameter(1, "how many columns", minimum=1)

    def kernel(self, case: Case) -> Kernel:
        made = TensorSpec(case.name, (self.rows, self.columns), case.dtype)
        return Kernel(partial(_write_constant, self.value), (made,))


def _write_constant(value: float, block: Block, survey: None, outputs: Sequence[Output]) -> int:
    del block, survey
    return outputs[0].take(torch.full((outputs[0].count,), value))


@dataclass(frozen=True)
class RowOrder(AbstractStrategy):
    """Finds the order of a matrix's rows by their sums: a fit, which makes no tensor."""

    name: ClassVar[str] = "row_order"
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    def kernel(self, case: Case) -> Kernel:
        return Kernel(None, (), grain=Grain.ROW, survey=partial(_order_rows, case.rows))


def _order_rows(rows: int, elements: int) -> Survey:
    del elements
    (sums,) = yield Pass(_row_sums, (rows,))
    return np.argsort(sums, kind="stable")


def _row_sums(block: Block, rows: int) -> Moments:
    sums = np.zeros(rows)
    first = block.start // block.case.columns
    part = block.stored[0].double().sum(1).numpy()
    sums[first : first + len(part)] = part
    return (sums,)


class PermutedRows(WrappedSource):
    """A view of a model with the rows of one matrix in an order that a fit has still to find."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__(model)
        self._name = name
        self.order: np.ndarray | None = None

    def receive(self, order: np.ndarray) -> None:
        self.order = order

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        if info.name != self._name:
            return super().read(info, start, stop, buffer)
        assert self.order is not None, "read before it was fitted"
        whole = super().read(info, 0, info.nbytes, np.empty(info.nbytes, np.uint8))
        rows = whole.reshape(info.shape[0], -1)[self.order]
        buffer[: stop - start] = rows.reshape(-1)[start:stop]
        return buffer[: stop - start]


class Stored(StateDict):
    """A state dict that views may wrap."""

    path = folder = tokenizer_folder = Path("memory")
    paths, files, metadata, nbytes, kept_bytes = (), (), {}, 0, 0


def planned(strategy: AbstractStrategy, inputs: Inputs[Tensor], name: str = "w") -> Plan:
    """Returns a plan of one task, whose inputs are models of one tensor each."""
    models = list(inputs)
    sources = [Stored({"w": tensor}, f"model {number}") for number, tensor in enumerate(models)]
    numbers = iter(range(len(models)))
    places: Inputs[Place] = inputs.map(lambda _: (next(numbers), "w"))
    resolved = strategy.resolved(len(inputs.parents))
    donors = sources or [Stored({}, "nothing")]
    return make_plan(donors, Assembly((Assignment(name, places, resolved),), 0))


def carried_out(plan: Plan, **options: Any) -> dict[str, Tensor]:
    """Runs a plan in memory."""
    sink, engine = MemorySink(plan), options.pop("engine", None)
    execute(plan, sink, RunOptions(**options), engine)
    return sink.tensors
