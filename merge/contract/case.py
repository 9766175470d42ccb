"""What is known of a task before a byte is read: its name, and the specs of its inputs by role."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Generic, TypeVar

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.errors import MissingRoleError, printable

PARENT, BASE = "parent", "base"
"""The two roles that every recipe knows; others (``statistics``, ``factor``) are named by who plans them."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Inputs(Generic[T]):
    """What a task takes, by role.

    The same shape serves specs (in a :class:`Case`), places in files (in a task) and stored elements (in a
    block), so that nothing is ever told apart by its position.

    Attributes:
        parents: what is merged, in the recipe's order.
        base: what differences are taken from, or None.
        others: everything else, by the name of its role.

    >>> inputs = Inputs(("a", "b"), base="c", others={"statistics": ("s",)})
    >>> list(inputs), inputs["base"], inputs.map(str.upper).parents
    (['a', 'b', 'c', 's'], ('c',), ('A', 'B'))
    """

    parents: tuple[T, ...] = ()
    base: T | None = None
    others: Mapping[str, tuple[T, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[T]:
        """Yields every input: the parents, the base, then the other roles in their order."""
        return (item for _, item in self.by_role())

    def __getitem__(self, role: str) -> tuple[T, ...]:
        """Returns the inputs of a role.

        Raises:
            MissingRoleError: nothing has that role.
        """
        if role == PARENT:
            return self.parents
        if role == BASE and self.base is not None:
            return (self.base,)
        if role not in self.others:
            raise MissingRoleError(role)
        return self.others[role]

    def by_role(self) -> Iterator[tuple[str, T]]:
        """Yields (role, input) in the order of iteration."""
        yield from ((PARENT, parent) for parent in self.parents)
        if self.base is not None:
            yield BASE, self.base
        for role, items in self.others.items():
            yield from ((role, item) for item in items)

    def map(self, function: Callable[[T], U]) -> Inputs[U]:
        """Returns the same roles with ``function`` of every input, called in the order of iteration."""
        parents = tuple(map(function, self.parents))
        base = None if self.base is None else function(self.base)
        return Inputs(
            parents, base, {role: tuple(map(function, items)) for role, items in self.others.items()}
        )

    def refill(self, items: Iterator[U]) -> Inputs[U]:
        """Returns the same roles with new inputs, taken one by one in the order of iteration."""
        parents = tuple(islice(items, len(self.parents)))
        base = None if self.base is None else next(items)
        return Inputs(
            parents, base, {role: tuple(islice(items, len(old))) for role, old in self.others.items()}
        )


@dataclass(frozen=True)
class TensorSpec:
    """A tensor before it is read, or before it is made.

    Attributes:
        name: its name in the model that it is read from, or in the output.
        shape: its full shape, ``[out, in]`` for matrices.
        dtype: as it is stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def rows(self) -> int:
        """Rows of the matrix view: the first dimension, or 1 below two dimensions."""
        return self.shape[0] if len(self.shape) >= 2 else 1

    @property
    def columns(self) -> int:
        """Elements of a row of the matrix view."""
        return self.count // max(self.rows, 1)

    @cached_property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in storage."""
        return self.count * self.dtype.size


@dataclass(frozen=True)
class Case:
    """What a strategy knows when it makes the kernel of one task.

    Attributes:
        name: the name of the tensor that is made; randomness is keyed by it.
        inputs: specs of everything that the task reads, by role.
        dtype: what merged values are stored as.
        seed: key of all randomness.
    """

    name: str
    inputs: Inputs[TensorSpec]
    dtype: DType
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The first parent's shape: the result's, for most strategies."""
        return self.inputs.parents[0].shape if self.inputs.parents else ()

    @property
    def result(self) -> TensorSpec:
        """A tensor of the parents' shape under the task's name: what most strategies make."""
        return TensorSpec(self.name, self.shape, self.dtype)

    @property
    def rows(self) -> int:
        """Rows of the result's matrix view."""
        return self.result.rows

    @property
    def columns(self) -> int:
        """Elements of a row of it."""
        return self.result.columns

    @property
    def count(self) -> int:
        """Number of elements of the result."""
        return self.result.count

    @property
    def has_base(self) -> bool:
        """Whether the task has a base."""
        return self.inputs.base is not None

    @property
    def shown_name(self) -> str:
        """The name as it may be shown on a terminal."""
        return printable(self.name)
