"""The models that are compared, opened, and the tensors that they have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from merge_models.evals.inputs.compatibility import is_vocabulary
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.layers import place_of, stacks
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.sources.lora import open_model as open_source
from merge_models.merge.checkpoint.sources.source import Source, StateDict
from merge_models.merge.errors import MergeError, counted

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Stored:
    """One tensor of one model."""

    source: Source
    info: TensorInfo


@dataclass(frozen=True)
class TensorFamily:
    """One tensor in every model that is compared.

    Attributes:
        name: its name; ``shape``: its shape, the same in all.
        merged: the merge's, None before a merge.
        parents: of the parents that it is compared with; empty where one of them lacks it or has another
            shape.
        whose: those parents' numbers: all, but for layers that came from some of them only.
        base: the base's, None where there is none or the parents are not all there.
        index: its place in the model.
    """

    name: str
    shape: tuple[int, ...]
    merged: Stored | None
    parents: tuple[Stored, ...]
    whose: tuple[int, ...]
    base: Stored | None
    index: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def models(self) -> list[Stored]:
        """Parents, then the merge: the order of every Gram matrix here."""
        return [*self.parents, *([self.merged] if self.merged else [])]


def open_model(model: object, label: str, *, allow_pickle: bool = False) -> Source:
    """Opens a folder, a file or a Hub id from disk (headers only), also with an adapter; a state dict or
    module.

    Raises:
        MergeError: it cannot be opened, or is none of these.
    """
    if isinstance(model, (str, os.PathLike)):
        return open_source(os.fspath(cast("str | os.PathLike[str]", model)), allow_pickle=allow_pickle)
    if isinstance(model, Mapping):
        return StateDict(cast("Mapping[str, Tensor]", model), label)
    if hasattr(model, "state_dict"):
        return StateDict(cast("nn.Module", model).state_dict(), label)
    raise MergeError(f"{label} is {type(model).__name__}; give a folder, a Hub id, a state dict or a module")


def normalised_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """Returns the parents' shares, summing to 1; equal ones for None.

    Raises:
        MergeError: there are not ``count`` of them, one is negative or not finite, or all are zero.
    """
    if weights is None:
        return (1.0 / count,) * count
    if len(weights) != count:
        raise MergeError(
            f"{counted(len(weights), 'weight')} for {counted(count, 'parent')}; give one per parent"
        )
    total = float(sum(weights))
    if not all(w >= 0 for w in weights) or not 0 < total < float("inf"):
        raise MergeError("parents' weights must be finite, none negative, and one positive")
    return tuple(float(w) / total for w in weights)


def shares_among(shares: Sequence[float], whose: Sequence[int]) -> tuple[float, ...]:
    """Returns the shares of some parents, summing to 1; equal ones where theirs are all zero."""
    own = [shares[number] for number in whose]
    return normalised_weights(own if sum(own) > 0 else None, len(own))


def align(
    merged: Source | None,
    parents: Sequence[Source],
    base: Source | None,
    origins: Sequence[Mapping[str, str]] | None = None,
) -> tuple[list[TensorFamily], list[str]]:
    """Returns the floating tensors of the merge (of the first parent, before a merge), each with its
    relatives.

    Layers are told by ``origins`` where they were put together anew. Where that is not known and a stack has
    another depth, equal numbers mean other layers: they are compared with nothing.

    Args:
        merged: the merge. parents: its parents. base: their base.
        origins: for each parent, and then the base, its names of the merge's tensors; those that are left
            out came from elsewhere. None: the same names everywhere.

    Returns:
        The families in the model's order, and a line for each tensor that a model lacks or has in another
        shape; such a tensor is compared with no parent, as its means would be of other models than elsewhere.

    Raises:
        MergeError: a model shares less than half of the numbers: it is no parent of this merge.
    """
    first = merged or parents[0]
    models: list[Source] = [*parents, *([base] if base else [])]
    known = [None] * len(models) if origins is None else origins
    relatives = [_Relative.of(m, n, merged) for m, n in zip(models, known, strict=True)]
    families: list[TensorFamily] = []
    problems = [line for one in relatives for line in one.depths()]
    fitting = dict.fromkeys(range(len(relatives)), 0)
    total = 0
    for index, info in enumerate(first.tensors.values()):
        if not info.dtype.is_float:
            continue
        total += info.count
        asked = [one.takes_part(info.name) for one in relatives]
        tensors = [one.find(info) for one in relatives]
        for number, one in enumerate(relatives):
            fits = tensors[number] or not asked[number] or one.is_alike(info) or one.has_other_tokens(info)
            fitting[number] += info.count if fits else 0
        problems += [
            one.difference(info)
            for one, wanted, f in zip(relatives, asked, tensors, strict=True)
            if wanted and f is None and not one.is_of_another_depth(info.name)
        ]
        whose = tuple(number for number in range(len(parents)) if asked[number])
        own = tuple(f for number in whose if (f := tensors[number]) is not None)
        complete = own if len(own) == len(whose) else ()
        families.append(
            TensorFamily(
                name=info.name,
                shape=info.shape,
                merged=Stored(merged, info) if merged else None,
                parents=complete,
                whose=whose if complete else (),
                base=tensors[-1] if complete and base is not None else None,
                index=index,
            )
        )
    for number, model in enumerate(models):
        if total and fitting[number] < total / 2:
            share = 100 * fitting[number] / total
            raise MergeError(
                f"{printable(model.label)} fits {printable(first.label)} in {share:.0f} % of the weights only"
                f" ({problems[0]}); give models of one architecture: the merge's own parents and their base"
            )
    return families, problems


@dataclass(frozen=True)
class _Relative:
    """A parent or the base, and how its tensors are found.

    Attributes:
        source: it.
        names: its names of the merge's tensors, where that is known; else they have the same.
        depths_by_stack: (the merge's, its own) layers of the stacks that have another depth, by prefix.
        kinds: (prefix, name in the layer, shape) of all that is in these.
    """

    source: Source
    names: Mapping[str, str] | None
    depths_by_stack: Mapping[str, tuple[int, int]]
    kinds: frozenset[tuple[str, str, tuple[int, ...]]]

    @staticmethod
    def of(source: Source, names: Mapping[str, str] | None, merged: Source | None) -> _Relative:
        if names is not None or merged is None:
            return _Relative(source, names, {}, frozenset())
        own, theirs = stacks(source.tensors), stacks(merged.tensors)
        depths = {p: (theirs[p], n) for p, n in own.items() if p in theirs and theirs[p] != n}
        places = [(place_of(name), info) for name, info in source.tensors.items()]
        kinds = frozenset((p.prefix, p.rest, info.shape) for p, info in places if p.prefix in depths)
        return _Relative(source, None, depths, kinds)

    def depths(self) -> list[str]:
        """A line for each stack of another depth."""
        label = printable(self.source.label)
        return [
            f"the merge has {counted(count, 'layer')} in '{printable(prefix)}' and {label} {own}: which came"
            f" from which only {MANIFEST} could tell; they are compared with none"
            for prefix, (count, own) in self.depths_by_stack.items()
        ]

    def is_of_another_depth(self, name: str) -> bool:
        return place_of(name).prefix in self.depths_by_stack

    def is_alike(self, info: TensorInfo) -> bool:
        """Whether it has such a tensor in layers of which nobody knows which is which."""
        place = place_of(info.name)
        return (place.prefix, place.rest, info.shape) in self.kinds

    def has_other_tokens(self, info: TensorInfo) -> bool:
        """Whether it has such a table of tokens, with other rows than the merge's own vocabulary."""
        own = self.source.tensors.get(self._name(info))
        return own is not None and is_vocabulary(own, info)

    def takes_part(self, name: str) -> bool:
        """Whether the merge's tensor came from here."""
        return self.names is None or name in self.names

    def find(self, info: TensorInfo) -> Stored | None:
        """Its tensor that is compared with one of the merge."""
        if self.is_of_another_depth(info.name) or not self.takes_part(info.name):
            return None
        tensor = self.source.tensors.get(self._name(info))
        fits = tensor is not None and tensor.shape == info.shape and tensor.dtype.is_float
        return Stored(self.source, tensor) if tensor is not None and fits else None

    def difference(self, info: TensorInfo) -> str:
        """Why there is none."""
        name, label = printable(self._name(info)), printable(self.source.label)
        tensor = self.source.tensors.get(self._name(info))
        if tensor is None:
            return f"{label} has no tensor '{name}'"
        if tensor.shape != info.shape:
            return f"'{name}' is {list(tensor.shape)} in {label}, not {list(info.shape)}"
        return f"'{name}' is {tensor.dtype.torch_name} in {label}, no floating tensor"

    def _name(self, info: TensorInfo) -> str:
        return info.name if self.names is None else self.names.get(info.name, info.name)
