"""The seam between scheduler and engine: any engine gives the same bytes, and what is sent can be sent."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import pytest
import torch
from torch import Tensor

from merge_models.merge import PlanError
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case, Inputs
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.planning import task as tasks
from merge_models.merge.running.hands import Hands
from merge_models.merge.running.reading import Buffers
from merge_models.merge.running.scheduler import Scheduler
from merge_models.merge.strategies.families.blocks import torch_kernel
from tests.merge.strategies.cases import CASES
from tests.merge.strategies.cases import Case as StrategyCase
from tests.merge.toys import carried_out, planned

T = TypeVar("T")


@dataclass(frozen=True)
class Serial:
    """One step after the other in this process; each is sent through bytes, as to another one."""

    workers: int = 1
    sends: bool = True

    def run(self, scheduler: Scheduler, hands: Hands, uses_torch: bool) -> None:
        del uses_torch
        buffers = Buffers()
        try:
            while (step := scheduler.take()) is not None:
                done = hands.perform(_sent(step), buffers)
                scheduler.finish(step, _sent(done))
        except BaseException as failure:
            scheduler.fail(failure)


def _sent(value: T) -> T:
    return pickle.loads(pickle.dumps(value))


def inputs_of(case: StrategyCase, dtype: torch.dtype) -> Inputs[Tensor]:
    """Returns parents that are siblings of a base, and the base where the strategy takes one."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(24, 16, generator=generator)
    parents = [base + 0.05 * torch.randn(24, 16, generator=generator) for _ in range(case.count)]
    takes_base = case.strategy.base_model.is_origin
    return Inputs(tuple(p.to(dtype) for p in parents), base.to(dtype) if takes_base else None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_an_engine_that_sends_gives_the_same_bytes(
    case: StrategyCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BLOCK_ELEMENTS", 64)
    plan = planned(case.strategy, inputs_of(case, dtype))
    threads, serial = carried_out(plan, threads=2), carried_out(plan, engine=Serial())
    assert torch.equal(threads["w"].view(torch.uint8), serial["w"].view(torch.uint8))


def test_what_no_other_process_finds_is_told_before_anything_runs() -> None:
    @dataclass(frozen=True)
    class Local(AbstractStrategy):
        name: ClassVar[str] = "local"

        def kernel(self, case: Case) -> Kernel:
            return torch_kernel(case, self._first)

        def _first(self, block: Block, survey: None) -> Tensor:
            del survey
            return block.stored[0]

    plan = planned(Local(), Inputs((torch.eye(3),)))
    assert torch.equal(carried_out(plan)["w"], torch.eye(3))  # threads need not send it
    with pytest.raises(
        PlanError, match=r"<locals>\.Local: cannot be sent .* define it at the top of a module"
    ):
        carried_out(plan, engine=Serial())


def test_a_failure_of_a_step_stops_the_engine() -> None:
    value = torch.eye(3)
    value[1, 1] = float("nan")
    with pytest.raises(Exception, match="model 0: tensor 'w' holds NaN"):
        carried_out(planned(CASES[0].strategy, Inputs((value,) * 3)), engine=Serial())
