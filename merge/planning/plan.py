"""A Plan: every task of a merge, and what is left behind; made from headers and configs alone.

What a plan accepts, a run can carry out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.outputs.layout import OutputTensor
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.checkpoint.sources.tied import is_head, says_tied
from merge_models.merge.checkpoint.stacked import Stack
from merge_models.merge.errors import PlanError
from merge_models.merge.planning.assembly import Assembly
from merge_models.merge.planning.fitting import Made, fitting_donor
from merge_models.merge.planning.making import make_task
from merge_models.merge.planning.quantised import check_not_quantised
from merge_models.merge.planning.task import Fit, Task

NUMERICS = 6
"""Raised whenever a kernel or strategy gives other bytes than before: unfinished merges then begin anew."""


@dataclass(frozen=True)
class Plan:
    """All tasks in writing order, and what is left behind.

    Attributes:
        models: every model that tasks refer to.
        tasks: what makes the output.
        donor: index of the model that gives config and tokenizer.
        dropped: (tensor name, model, reason) of every input tensor that has no part in it.
        untied: the output holds a head of its own although the donor's config ties it.
        stacks: those that have other layers than the donor's.
        notes: where the result differs from mergekit's on purpose.
        remarks: what else a recipe's author may not expect.
        fits: what must be known before the first task runs.
    """

    models: tuple[Source, ...]
    tasks: tuple[Task, ...]
    donor: int
    dropped: tuple[tuple[str, str, str], ...] = ()
    untied: bool = False
    stacks: tuple[Stack, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    fits: tuple[Fit, ...] = ()

    @property
    def bytes_in(self) -> int:
        """Bytes of one reading of all inputs."""
        return sum(task.bytes_in for task in self.every_task())

    @property
    def bytes_out(self) -> int:
        """Bytes of all outputs."""
        return sum(task.bytes_out for task in self.tasks)

    @property
    def parameters(self) -> int:
        """Elements of the output."""
        return sum(spec.count for task in self.tasks for spec in task.outputs)

    @property
    def is_renamed(self) -> bool:
        """Whether tensors came from others of another name, weights that are tied apart."""
        refs = ((task.name, ref.info.name) for task in self.tasks for ref in task.inputs)
        return bool(self.stacks) or any(name != own and not is_head(name) for name, own in refs)

    def every_task(self) -> tuple[Task, ...]:
        """Returns the tasks of fits, then those that make the output."""
        return (*(fit.task for fit in self.fits), *self.tasks)

    def worker_bytes(self) -> int:
        """Returns memory that a worker needs at most."""
        return max((task.worker_bytes() for task in self.every_task()), default=0)

    def outputs(self) -> list[OutputTensor]:
        """Returns every tensor that is written, in order."""
        return [OutputTensor(s.name, s.dtype, s.shape) for task in self.tasks for s in task.outputs]

    def main_dtype(self) -> DType | None:
        """Returns the floating dtype of most output elements, the first of several; None if there is none."""
        counts: dict[str, int] = {}
        floats = [spec for task in self.tasks for spec in task.outputs if spec.dtype.is_float]
        by_code = {spec.dtype.code: spec.dtype for spec in floats}
        for spec in floats:
            counts[spec.dtype.code] = counts.get(spec.dtype.code, 0) + spec.count
        return by_code[max(counts, key=lambda code: counts[code])] if counts else None


def make_plan(
    models: Sequence[Source], assembly: Assembly, out_dtype: DType | None = None, seed: int = 0
) -> Plan:
    """Fits models and strategies together.

    Args:
        models: every model that the assembly refers to.
        assembly: which tensors make which.
        out_dtype: dtype of merged tensors; by default that of the sources, the widest where they differ.
        seed: key of all randomness.

    Raises:
        PlanError: a tensor is missing or has another shape somewhere, models do not fit each other or
            the strategy, there is nothing to merge, or the output would fit no model's config.
    """
    _check_configs(models)
    tasks = [make_task(assignment, models, out_dtype, seed) for assignment in assembly.assignments]
    if not tasks:
        raise PlanError(f"{models[assembly.donor].label}: holds no tensors")
    _check_names(tasks)
    output = [
        Made(spec.name, spec.shape, task.parents[0].model if task.parents else assembly.donor)
        for task in tasks
        for spec in task.outputs
    ]
    donor, fitted = fitting_donor(models, assembly.donor, output, {stack.prefix for stack in assembly.stacks})
    untied = any(is_head(task.name) and _is_untied(task, models, models[donor]) for task in tasks)
    remarks = [*assembly.remarks, *([fitted] if fitted else []), *_told(tasks), *_shared(tasks)]
    return Plan(
        tuple(models), tuple(tasks), donor, assembly.dropped, untied, assembly.stacks,
        remarks=tuple(remarks),
    )  # fmt: skip


def _check_names(tasks: Sequence[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        for spec in task.outputs:
            if spec.name in seen:
                raise PlanError(
                    f"tensor '{printable(spec.name)}' would be made twice; give outputs other names"
                )
            seen.add(spec.name)


def _told(tasks: Sequence[Task]) -> list[str]:
    """The strategies' own remarks."""
    strategies = {id(t.strategy): t.strategy for t in tasks if t.strategy is not None}
    return list(dict.fromkeys(s.remark for s in strategies.values() if s.remark))


def _shared(tasks: Sequence[Task]) -> list[str]:
    """A remark where parameters that differ by tensor divide what was to be measured over the whole model."""
    groups = {group for task in tasks if (group := task.survey_group) is not None}
    if len(groups) < 2:
        return []
    return [
        "scope: model measures together what has the same models and, of its parameters, the same that decide"
        f" the measure (such as density): {len(groups)} groups of tensors here"
    ]


def _is_untied(head: Task, models: Sequence[Source], donor: Source) -> bool:
    """Whether the output needs the head although the donor's config says that it is the embedding."""
    if head.name not in donor.tensors:
        return True
    tied = says_tied(donor.config, head.name) is True
    return tied and any(says_tied(models[r.model].config, head.name) is False for r in head.parents)


def _check_configs(models: Sequence[Source]) -> None:
    for model in models:
        check_not_quantised(model)
    kinds = [(m.label, m.config["architectures"]) for m in models if m.config.get("architectures")]
    for label, kind in kinds[1:]:
        if kind != kinds[0][1]:
            raise PlanError(
                f"architectures differ: {kinds[0][0]} is {_words(kinds[0][1])}, {label} is {_words(kind)};"
                " merge models of one architecture"
            )


def _words(value: Any) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
