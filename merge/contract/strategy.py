"""What a strategy is: parameters, and how they become kernels."""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameters_of, per_model_values


class BaseModel(enum.Enum):
    """What a recipe's base model is to a strategy."""

    UNUSED = "unused"
    """It gives config and tokenizer, and is a parent only where it is listed among the models."""
    PARENT = "first parent"
    """It is the first parent, as in mergekit's slerp."""
    OPTIONAL = "optional"
    """Parents are measured against it where there is one."""
    REQUIRED = "required"
    """Parents are measured against it."""
    MIXED = "required, mixed"
    """The same, and the result is a mixture of it and the parents: no sum of task vectors, as in nearswap."""

    @property
    def is_origin(self) -> bool:
        """Whether parents are measured against it, where it is given."""
        return self in (BaseModel.OPTIONAL, BaseModel.REQUIRED, BaseModel.MIXED)

    @property
    def is_required(self) -> bool:
        """Whether nothing can be merged without it."""
        return self in (BaseModel.REQUIRED, BaseModel.MIXED)


S = TypeVar("S", bound="AbstractStrategy")


@dataclass(frozen=True)
class AbstractStrategy(abc.ABC):
    """A way to merge: a frozen dataclass whose fields, made by ``parameter(...)``, are its parameters.

    Concrete classes are final. The loop never sees one: when a merge is planned, it makes a kernel for each
    tensor.

    Attributes:
        name: what recipes call it.
        aliases: other names for it.
        carrier: the manifold that its points lie on, by its name in ``merge_models.manifolds``; the class
            itself would take geoopt, most of a second, to import. Empty where nothing is averaged.
        source: where the method comes from.
        base_model: what a recipe's base is to it, unless ``base_for`` says otherwise.
        parents: how many it takes at least and at most.
        needs_equal_shapes: whether parents and base must all have one shape.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    carrier: ClassVar[str] = "euclidean"
    source: ClassVar[str] = ""
    base_model: ClassVar[BaseModel] = BaseModel.UNUSED
    parents: ClassVar[tuple[int, int | None]] = (1, None)
    needs_equal_shapes: ClassVar[bool] = True

    @abc.abstractmethod
    def kernel(self, case: Case) -> Kernel:
        """Makes what merges one tensor.

        Called on a resolved strategy when the merge is planned, from headers alone.

        Raises:
            PlanError: the parameters do not fit the tensor.
        """

    def resolved(self: S, count: int) -> S:
        """Returns this strategy with every parameter checked and per-model ones as tuples of ``count``.

        Raises:
            RecipeError: a value has the wrong type, range or number.
        """
        values = {}
        for parameter in parameters_of(type(self)).values():
            value = getattr(self, parameter.field)
            if parameter.per_model:
                values[parameter.field] = per_model_values(parameter, value, count)
            else:
                values[parameter.field] = parameter.check(value)
        strategy = dataclasses.replace(self, **values)
        strategy.validate(count)
        return strategy

    def validate(self, count: int) -> None:
        """Checks what single parameters cannot: how values of ``count`` parents fit together.

        Raises:
            RecipeError: they do not.
        """
        del count

    @classmethod
    def base_for(cls, parameters: Mapping[str, Any]) -> BaseModel:
        """Returns what a recipe's base is under the recipe's ``parameters``: ``base_model``, unless one of
        them decides it."""
        del parameters
        return cls.base_model

    @property
    def base_use(self) -> BaseModel:
        """What the base is under these very parameters."""
        return self.base_for({p.name: getattr(self, p.field) for p in parameters_of(type(self)).values()})

    def intended_shares(self, count: int) -> tuple[float, ...] | None:
        """Returns how much of each of ``count`` models is meant to be in the result, summing to 1.

        The base counts, first, where it is mixed in. Shares follow ``weight`` where there is one, and are
        equal else; None for negative weights.
        """
        weights = getattr(self, "weight", (1.0,) * count)
        total = math.fsum(weights)
        if min(weights) < 0 or total <= 0:
            return None
        return tuple(weight / total for weight in weights)

    @property
    def remark(self) -> str:
        """What a recipe's author may not expect of these parameters; empty where there is nothing to tell."""
        return ""


def class_text(kind: type) -> str:
    """Returns a class as manifests and messages name it, ``package.module:Class``."""
    return f"{kind.__module__}:{kind.__qualname__}"
