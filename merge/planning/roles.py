"""What each of a recipe's models is to its strategy: parent, base, or the first parent that is the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel


@dataclass(frozen=True)
class Roles:
    """The roles of some listed models.

    Attributes:
        parents: places in the list of what is merged, in order.
        measures_from_base: whether the base is what parents are measured against.
        is_base_alone: whether the only listed model is the base, which task vectors would be added to: it is
            taken as it is, and ``parents`` are all that is listed.
    """

    parents: tuple[int, ...]
    measures_from_base: bool = False
    is_base_alone: bool = False


def roles_of(
    strategy: type[AbstractStrategy], parameters: Mapping[str, Any], listed: Sequence[str], base: str | None
) -> Roles:
    """Decides the roles of listed models; nothing else does.

    Args:
        strategy: how they are merged.
        parameters: the recipe's, which may decide what the base is.
        listed: the models by name; the base may be among them.
        base: the recipe's base model, or None.
    """
    everyone = tuple(range(len(listed)))
    bases = tuple(place for place in everyone if listed[place] == base)
    others = tuple(place for place in everyone if listed[place] != base)
    use = strategy.base_for(parameters)
    if base is None or use is BaseModel.UNUSED:
        return Roles(everyone)
    if use is BaseModel.PARENT:
        return Roles((*bases, *others))
    if not others and listed and _may_be_alone(strategy):
        return Roles(everyone, is_base_alone=True)
    return Roles(others, measures_from_base=True)


def _may_be_alone(strategy: type[AbstractStrategy]) -> bool:
    """Whether a base without models is a merge: that of no task vectors."""
    return strategy.base_model is BaseModel.REQUIRED and strategy.parents == (1, None)
