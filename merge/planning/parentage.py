"""Who a merge's parents are, and how much of each is meant to be in it: what it is measured against later."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from merge_models.merge.contract.strategy import BaseModel
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import Task


@dataclass(frozen=True)
class Relative:
    """A model of a plan.

    Attributes:
        role: ``parent``, or ``base``: what only differences are taken from, or only config and tokenizer.
        share: of a parent, where the plan tells: by its weights, meaned over the elements that are merged.
    """

    role: str
    share: float | None = None


def relatives(plan: Plan, base: int | None) -> tuple[Relative, ...]:
    """Returns the roles of a plan's models.

    A base that is mixed in is a parent like any other: the first model of ``slerp``, one that ``linear``
    lists among its models, the one that ``nearswap`` moves.

    Args:
        plan: the plan.
        base: index of the recipe's base_model, or None.
    """
    mixed = [task for task in plan.tasks if not task.is_copied]
    parents = {model for task in mixed for model in _mixed(task)} or {plan.donor}
    bases = {task.base.model for task in mixed if task.base is not None} | {base}
    shares = _shares(mixed)
    return tuple(
        Relative("base")
        if model in bases - parents
        else Relative("parent", None if shares is None else shares.get(model, 0.0))
        for model in range(len(plan.models))
    )


def origins(plan: Plan) -> tuple[dict[str, str], ...]:
    """Returns for each of a plan's models, which of its tensors the output's came from; nothing unless names
    do not tell: layers were put together anew, or a model has other names."""
    found: tuple[dict[str, str], ...] = tuple({} for _ in plan.models)
    for task in plan.tasks if plan.is_renamed else ():
        for ref in task.inputs:
            found[ref.model][task.name] = ref.info.name
    return found


def _mixed(task: Task) -> list[int]:
    """The models that a task's result is a mixture of, by their numbers."""
    assert task.strategy is not None
    refs = [task.base, *task.parents] if task.strategy.base_use is BaseModel.MIXED else task.parents
    return [ref.model for ref in refs if ref is not None]


def _shares(mixed: list[Task]) -> dict[int, float] | None:
    """Each model's part of the elements; None where some weights are no shares, or there are no elements."""
    parts: dict[int, float] = defaultdict(float)
    for task in mixed:
        assert task.strategy is not None
        models = _mixed(task)
        shares = task.strategy.intended_shares(len(models))
        if shares is None:
            return None
        for model, share in zip(models, shares, strict=True):
            parts[model] += share * task.count
    total = sum(parts.values())
    return {model: part / total for model, part in parts.items()} if total > 0 else None
