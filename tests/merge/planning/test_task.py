"""Tasks that are no means of same-shaped parents: other shapes, several outputs, other roles, none, fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from merge_models.merge import MergeError, PlanError, merge, reproduce, verify
from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case, Inputs, TensorSpec
from merge_models.merge.contract.kernel import Grain, Kernel, Output
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.planning import task as tasks
from merge_models.merge.planning.assembly import Assignment
from merge_models.merge.planning.making import make_task
from merge_models.merge.planning.task import Fit
from merge_models.merge.strategies import Linear
from merge_models.merge.strategies.families.blocks import torch_kernel
from tests.helpers import read_folder, write_folder
from tests.merge.toys import (
    ConstantRows,
    Halved,
    PermutedRows,
    RowOrder,
    ScaledByColumn,
    Split,
    carried_out,
    planned,
)


@pytest.fixture(autouse=True, params=[10, 1 << 18], ids=["many blocks", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BLOCK_ELEMENTS", request.param)


def matrix(seed: int = 0, rows: int = 7, columns: int = 6) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_output_of_another_shape(threads: int) -> None:
    value = matrix()
    made = carried_out(planned(Halved(), Inputs((value,))), threads=threads)
    torch.testing.assert_close(made["w"], (value[:, 0::2] + value[:, 1::2]) / 2)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_tensors_of_one(threads: int) -> None:
    value = matrix(columns=5)
    made = carried_out(planned(Split(), Inputs((value,))), threads=threads)
    assert list(made) == ["w.left", "w.right"]
    assert torch.equal(torch.cat([made["w.left"], made["w.right"]], 1), value)


def test_inputs_of_other_roles_are_seen_whole() -> None:
    parents, scale = (matrix(1), matrix(2)), torch.arange(6.0)
    made = carried_out(planned(ScaledByColumn(), Inputs(parents, others={"statistics": (scale,)})))
    torch.testing.assert_close(made["w"], (parents[0] + parents[1]) / 2 * scale)


def test_a_role_that_nothing_has_is_named_with_the_class() -> None:
    words = r"'w'.*tests\.merge\.toys:ScaledByColumn needs inputs of the role 'statistics'"
    with pytest.raises(PlanError, match=words):
        planned(ScaledByColumn(), Inputs((matrix(),)))


def test_a_tensor_without_parents() -> None:
    made = carried_out(planned(ConstantRows(value=2.5, rows=4, columns=9), Inputs()))
    assert torch.equal(made["w"], torch.full((4, 9), 2.5))


def test_a_fit_permutes_a_parent_before_it_is_merged() -> None:
    first, order = matrix(1), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    straight = first[first.sum(1).argsort()]
    plan = planned(Linear(), Inputs((straight, first[order])))
    model = plan.models[1]
    view = PermutedRows(model, "w")
    models = (plan.models[0], view, model)
    fitted = make_task(Assignment("w", Inputs(((2, "w"),)), RowOrder().resolved(1)), models)
    plan = replace(plan, models=models, fits=(Fit(fitted, view.receive),))
    assert plan.bytes_in == 3 * first.nbytes and plan.bytes_out == first.nbytes
    assert torch.equal(carried_out(plan)["w"], straight)


def test_several_outputs_are_published_resumed_verified_and_reproduced(tmp_path: Path) -> None:
    states = {"a": matrix(1), "b": matrix(2)}
    folder = write_folder(tmp_path / "m", states, config=None)
    seen: list[int] = []

    def stop(nbytes: int) -> None:
        seen.append(nbytes)
        if sum(seen) > states["a"].nbytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge([str(folder)], Split(), out=tmp_path / "out", threads=1, progress=stop)
    result = merge([str(folder)], Split(), out=tmp_path / "out")
    assert result.resumed == 2
    made = read_folder(tmp_path / "out")
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {
        f"{name}.{side}": (7, 3) for name in states for side in ("left", "right")
    }
    assert not verify(tmp_path / "out", inputs=True).problems
    assert not reproduce(tmp_path / "out").differences


def _write_twice(block: Block, survey: None, outputs: Sequence[Output]) -> int:
    del survey
    return outputs[0].take(block.stored[0]) | outputs[0].take(block.stored[0])


@dataclass(frozen=True)
class _Bad(AbstractStrategy):
    """A strategy that breaks the contract in one way."""

    name: ClassVar[str] = "bad"
    how: str = parameter("", "what it does wrong")

    def kernel(self, case: Case) -> Kernel:
        kernel = torch_kernel(case, self._combine)
        if self.how == "unwritten":
            return replace(kernel, write=lambda block, survey, outputs: 0)
        if self.how == "twice":
            return replace(kernel, write=_write_twice)
        if self.how == "beyond":
            return replace(kernel, write=lambda block, survey, outputs: outputs[1].take(block.stored[0]))
        if self.how == "uncut":
            return replace(kernel, outputs=(TensorSpec(case.name, (2, 2), case.dtype),))
        if self.how == "no outputs":
            return replace(kernel, outputs=())
        return kernel

    def _combine(self, block: Block, survey: None) -> Tensor:
        if self.how == "raises":
            raise ValueError("no such luck")
        return block.stored[0].flatten()[:-1] if self.how == "shape" else block.stored[0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("shape", r"test_task:_Bad made \d+ values for a block of \d+ of 'w'; a kernel makes as many"),
        ("unwritten", r"test_task:_Bad left 'w' unwritten; fill every output"),
        ("twice", r"test_task:_Bad filled 'w' twice; fill each output once"),
        ("beyond", r"test_task:_Bad failed: IndexError: .*; mend its kernel"),
        ("raises", r"test_task:_Bad failed: ValueError: no such luck; mend its kernel"),
        ("uncut", r"test_task:_Bad: cuts \[2, 2\] and \[7, 6\] alike by element; name the input's role in"),
        ("no outputs", r"test_task:_Bad: writes, but names no outputs"),
    ],
)
def test_a_kernel_that_breaks_the_contract_is_named(how: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=words):
        carried_out(planned(_Bad(how), Inputs((matrix(), matrix(1)))))
    folder = write_folder(tmp_path / "m", {"w": matrix()}, config=None)
    with pytest.raises(MergeError, match=words):
        merge([str(folder)], _Bad(how), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_blocks_of_a_whole_tensor_are_one() -> None:
    spec = TensorSpec("w", (7, 6), BY_CODE["F32"])
    case = Case("w", Inputs((spec,)), spec.dtype)
    kernel = replace(Linear().resolved(1).kernel(case), grain=Grain.TENSOR)
    whole = tasks.Task(case, Inputs(), kernel, Linear())
    assert whole.blocks() == [(0, 42)]
