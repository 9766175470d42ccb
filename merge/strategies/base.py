"""The contract between a strategy and the loop that runs it (one kernel per file beside this one).

A strategy is a frozen dataclass whose fields are its parameters, resolved for one tensor. It sees blocks
of tensors and nothing else. It declares its ``grain`` (what a block must not split), may ``survey`` the
blocks first (an associative reduction, in as many rounds as it needs), and then combines each block alone.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from merge_models.merge.errors import PlanError, RecipeError
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.parameters import parameters_of, per_model_values

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models.manifolds.span import Gram
    from merge_models.merge.kernels.blocks import Span
    from merge_models.merge.kernels.terms import Mixing, Thinned
    from merge_models.merge.strategies.near_points import NearGram
else:
    torch = LazyModule("torch")


class Grain(enum.Enum):
    """What a block must not split."""

    ELEMENT = "element"
    ROW = "row"
    TENSOR = "tensor"


class BaseModel(enum.Enum):
    """Whether a strategy measures parents against a base model."""

    UNUSED = "unused"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True)
class TensorSpec:
    """What a strategy may know of the tensor that it works on.

    Attributes:
        name: the tensor's name; randomness is keyed by it.
        shape: its full shape, ``[out, in]`` for matrices.
        seed: the merge's seed.
        together: elements of all tensors that share a survey of the whole model; 0 where it has its own.
    """

    name: str
    shape: tuple[int, ...]
    seed: int = 0
    together: int = 0

    @property
    def rows(self) -> int:
        """Rows of the matrix view: the first dimension, or 1 below two dimensions."""
        return self.shape[0] if len(self.shape) >= 2 else 1

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def surveyed(self) -> int:
        """Number of elements that its survey covers."""
        return self.together or self.count


@dataclass(frozen=True)
class Block:
    """A part of one tensor, of every parent.

    Attributes:
        spans: one per parent: its elements as they are stored, to be read only.
        base_span: the same part of the base model, or None.
        start: index of the block's first element in the flattened tensor.
        spec: the whole tensor.
        number: the block's place among those that share its survey.
        columns: elements of a row, where blocks are whole rows (a 1-D tensor is one row); None where they
            are any run of elements.
        places: of a sample, int64, where its runs of ``samples.RUN`` elements begin in the flattened tensor.
    """

    spans: tuple[Span, ...]
    base_span: Span | None
    start: int
    spec: TensorSpec
    number: int = 0
    columns: int | None = None
    places: np.ndarray | None = None

    @staticmethod
    def of(stored: Sequence[Tensor], base: Tensor | None, start: int, spec: TensorSpec) -> Block:
        """A tensor's first block from torch's tensors: flat ones, or ``[rows, columns]``."""
        from merge_models.merge.kernels.blocks import Span

        columns = stored[0].shape[-1] if stored[0].ndim > 1 else None
        base_span = None if base is None else Span.of(base)
        return Block(tuple(map(Span.of, stored)), base_span, start, spec, columns=columns)

    @cached_property
    def stored(self) -> tuple[Tensor, ...]:
        """One tensor per parent, in the memory of ``spans``: ``[count]``, or ``[rows, columns]``."""
        return tuple(map(self._tensor, self.spans))

    @cached_property
    def stored_base(self) -> Tensor | None:
        """The same part of the base model, or None."""
        return None if self.base_span is None else self._tensor(self.base_span)

    def _tensor(self, span: Span) -> Tensor:
        return span.tensor() if self.columns is None else span.tensor().view(-1, self.columns)

    @cached_property
    def parents(self) -> tuple[Tensor, ...]:
        """Private copies of the parents in float32 (float64 for float64 storage)."""
        return tuple(_widened(stored) for stored in self.stored)

    @cached_property
    def base(self) -> Tensor | None:
        """A private copy of the base, like the parents'."""
        return None if self.stored_base is None else _widened(self.stored_base)

    def deltas(self) -> list[Tensor]:
        """Task vectors: each parent minus the base."""
        if self.base is None:
            raise PlanError(f"tensor '{self.spec.name}': no base model to take differences from")
        return [parent - self.base for parent in self.parents]


def _widened(stored: Tensor) -> Tensor:
    return stored.to(torch.float64 if stored.dtype == torch.float64 else torch.float32, copy=True)


Moments = tuple[Any, ...]
"""Tensors, or whatever else ``+=`` adds up."""


@dataclass(frozen=True)
class Pass:
    """One round of a survey: ``measure`` is called on every block, its results are added.

    With ``every``, a block is a sample, one element in so many, in short runs (samples.py); it may be empty,
    and ``measure`` may keep it.

    ``measure`` returns a tuple of float64 or int64 tensors, or arrays, of fixed shapes. The loop adds them in
    block order, so the total does not depend on threads.
    """

    measure: Callable[[Block], Moments]
    every: int | None = None


Survey = Generator[Pass, Moments, Any]
"""Yields passes, is sent each pass's total, returns what ``combine`` gets."""

Mixer = Callable[[Sequence["Span"], "Span"], int]
"""Writes a block, or as much of it as it is given, from its sources (parents, then the base) into an output.

Returns ``NOT_FINITE`` where a source is NaN or Inf, ``OVERFLOW`` where only what is written is, else 0.
"""

Terms = tuple["Sequence[Thinned]", "Mixing"]
"""What is left of each parent's task vector in a block, and how that becomes one."""

Figures = dict[str, float | int | bool | str]
"""What a strategy found out about a tensor, for the summary and the manifest."""

S = TypeVar("S", bound="AbstractStrategy")


@dataclass(frozen=True)
class AbstractStrategy(abc.ABC):
    """Turns the blocks of several parents into one; concrete classes are final."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    carrier: ClassVar[str] = "flat"
    source: ClassVar[str] = ""
    base_model: ClassVar[BaseModel] = BaseModel.UNUSED
    base_is_parent: ClassVar[bool] = False
    """A recipe's base_model is the first parent, as in mergekit's slerp."""
    base_is_mixed: ClassVar[bool] = False
    """The result is a mixture of the base and the parents, not of task vectors only, as in nearswap."""
    parents: ClassVar[tuple[int, int | None]] = (1, None)

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
        """What a recipe's base is to this method under the recipe's ``parameters``: ``base_model``, unless
        one of them decides it."""
        del parameters
        return cls.base_model

    @property
    def base_use(self) -> BaseModel:
        """``base_for`` of these very parameters."""
        own = {p.name: getattr(self, p.field) for p in parameters_of(type(self)).values()}
        return self.base_for(own)

    def intended_shares(self, count: int) -> tuple[float, ...] | None:
        """How much of each of ``count`` models (of the base first, where it is mixed in) is meant to be in
        the result, summing to 1: by ``weight`` where there is one, else equal; None for negative weights."""
        weights = getattr(self, "weight", (1.0,) * count)
        total = math.fsum(weights)
        if min(weights) < 0 or total <= 0:
            return None
        return tuple(weight / total for weight in weights)

    @property
    def remark(self) -> str:
        """What a recipe's author may not expect of these parameters; empty where there is nothing to tell."""
        return ""

    @property
    def grain(self) -> Grain:
        """What a block must not split."""
        return Grain.ELEMENT

    @property
    def survey_group(self) -> tuple[Any, ...] | None:
        """All that a survey of the whole model depends on; tensors of the same parents that have it alike
        share one survey. None: each tensor has its own."""
        return None

    def check(self, spec: TensorSpec) -> None:
        """Checks that the parameters fit a tensor's shape; called when planning, before anything is read.

        Raises:
            PlanError: they do not.
        """
        del spec

    def block_rows(self, spec: TensorSpec) -> int:
        """How many rows a block should have at least under ``Grain.ROW``; the loop's own number is enough
        for most. A survey whose result is larger than a usual block wants more."""
        del spec
        return 1

    def survey_bytes(self, spec: TensorSpec) -> int:
        """Memory that a tensor's survey takes beyond its blocks, for the plan's estimate."""
        del spec
        return 0

    def survey(self, spec: TensorSpec) -> Survey | None:
        """Rounds of measuring before the first block is combined, or None."""
        del spec
        return None

    @abc.abstractmethod
    def combine(self, block: Block, survey: Any) -> Tensor:
        """Merges one block, given what ``survey`` returned; shape of the parents' blocks."""

    def figures(self, spec: TensorSpec, survey: Any) -> Figures:
        """What is worth telling about a tensor after its survey."""
        del spec, survey
        return {}


@dataclass(frozen=True)
class Mixture:
    """Coefficients of a merge that lies in the span of its points: ``sum_i parents[i] x_i + base * x_0``.

    Attributes:
        parents: float64 ``[..., N]``, batched like the Gram matrix that it was made from.
        base: float64 ``[...]``, or None where the base has no part.
        figures: what is worth telling.
    """

    parents: Tensor
    base: Tensor | None = None
    figures: Figures = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class FixedMixture:
    """Coefficients as plain numbers, one a parent and the base's: no geometry decides them, or it is done."""

    parents: tuple[float, ...]
    base: float = 0.0
    figures: Figures = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class AbstractSpanStrategy(AbstractStrategy):
    """A mean that respects isometries: it lies in the span of its points, so a Gram matrix decides it.

    Subclasses give ``mixture``: Gram in, coefficients out, batched. The loop does the rest, from storage
    bytes to storage bytes, with float64 sums.
    """

    @property
    def per(self) -> str:
        """``tensor``: one point per tensor; ``row``: one per row (neuron)."""
        return "tensor"

    @property
    def needs_gram(self) -> bool:
        """Whether ``mixture`` looks at the Gram matrix; else one pass over the files is enough."""
        return True

    @abc.abstractmethod
    def mixture(self, gram: Gram | None) -> Mixture | FixedMixture:
        """Coefficients from the points' Gram matrix, taken about the base, or about the first parent.

        Args:
            gram: N parents, batched over leading dimensions; None where ``needs_gram`` is false, and the
                mixture is a :class:`FixedMixture`.
        """

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        """The same for one tensor without torch, where nothing is degenerate; None: ask ``mixture``.

        Args:
            gram: taken about the base where there is one (``has_base``), else about the first parent.
        """
        del gram, has_base
        return None

    def mixture_with_base(self, gram: Gram | None) -> Mixture | FixedMixture:
        """``mixture`` where a base model is there, and is the Gram's reference."""
        return self.mixture(gram)

    @property
    def grain(self) -> Grain:
        return Grain.ELEMENT if self.per == "tensor" else Grain.ROW

    def combine(self, block: Block, survey: Any) -> Tensor:
        """Merges with the tensor's mixture (``survey``), or with one per row."""
        from merge_models.merge.kernels.mixing import mix

        mixture = survey if isinstance(survey, Mixture) else self._row_mixture(block)
        return mix(block.stored, mixture.parents, block.stored_base, mixture.base)

    def _row_mixture(self, block: Block) -> Mixture:
        from merge_models.merge.kernels.mixing import row_gram

        mixture = self.mixture if block.stored_base is None else self.mixture_with_base
        reference = block.stored[0] if block.stored_base is None else block.stored_base
        found = mixture(row_gram(block.stored, reference))
        assert isinstance(found, Mixture), "fixed coefficients are the same for all rows"
        return found


@dataclass(frozen=True)
class AbstractKernelStrategy(AbstractStrategy):
    """Combines by one block kernel, from storage bytes to storage bytes."""

    makes_copies: ClassVar[bool] = True
    """Whether the mixer, or what comes before it, takes memory of a block's size."""

    @abc.abstractmethod
    def mixer(self, block: Block, survey: Any) -> Mixer:
        """What merges a block, given what ``survey`` returned.

        It is called once on the whole block, and at times again on the first elements of its sources.
        """

    def combine(self, block: Block, survey: Any) -> Tensor:
        from merge_models.merge.kernels.blocks import wide_span

        sources = block.spans if block.base_span is None else (*block.spans, block.base_span)
        merged = wide_span(sources)
        self.mixer(block, survey)(sources, merged)
        return merged.tensor().view(block.stored[0].shape)


@dataclass(frozen=True)
class AbstractTermStrategy(AbstractKernelStrategy):
    """The base plus a sum of thinned task vectors, by a rule that says which take part in an element.

    Subclasses give ``terms``.
    """

    @abc.abstractmethod
    def terms(self, block: Block, survey: Any) -> Terms:
        """What is left of each parent's task vector in a block, and how that becomes one."""

    def mixer(self, block: Block, survey: Any) -> Mixer:
        from merge_models.merge.kernels.blocks import Span
        from merge_models.merge.kernels.task_vectors import mix_into

        thinned, mixing = self.terms(block, survey)

        def mix(sources: Sequence[Span], out: Span) -> int:
            if not block.columns or not out.count % block.columns:
                return mix_into(sources[:-1], sources[-1], thinned, mixing, out)
            assert block.base_span is not None
            count = -(-out.count // block.columns) * block.columns  # what is left may depend on the whole row
            rows = Span(np.empty(count * out.dtype.size, np.uint8), out.dtype)
            *parents, base = (span.first(count) for span in (*block.spans, block.base_span))
            flags = mix_into(parents, base, thinned, mixing, rows)
            out.data[:] = rows.data[: out.data.nbytes]
            return flags

        return mix


NOT_DIVIDED = "weights that sum to zero are not divided by their sum, as in mergekit"


def is_zero_sum(weights: tuple[float, ...]) -> bool:
    """Whether weights cancel out, to rounding."""
    return abs(math.fsum(weights)) <= 1e-8 * math.fsum(map(abs, weights))


def divisor_of(weights: tuple[float, ...]) -> float:
    """What ``normalize`` divides a sum of task vectors by: the weights' sum, or 1 where they cancel out, as
    in mergekit; task vectors with such weights are taken from each other."""
    return 1.0 if is_zero_sum(weights) else math.fsum(weights)


def normalised(weights: tuple[float, ...], what: str = "weights") -> tuple[float, ...]:
    """Weights divided by their sum.

    Raises:
        RecipeError: the sum is zero, or as good as zero against the weights.
    """

    total = math.fsum(weights)
    if abs(total) <= 1e-12 * math.fsum(abs(w) for w in weights):
        raise RecipeError(
            f"{what} {', '.join(f'{w:g}' for w in weights)} sum to zero and cannot be normalised;"
            " change them or set normalize: false"
        )
    return tuple(w / total for w in weights)
