"""The models that are compared, opened, and the tensors that they have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.lora import open_model as open_source
from merge_models.merge.checkpoint.source import Source, StateDict
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
        parents: the parents', empty where one lacks it or has another shape.
        base: the base's, None where there is none or the parents are not all there.
        index: its place in the model.
    """

    name: str
    shape: tuple[int, ...]
    merged: Stored | None
    parents: tuple[Stored, ...]
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
    """A folder, a file or a Hub id from disk (headers only), also with an adapter; a state dict or module.

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
    """The parents' shares, summing to 1; equal ones for None.

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


def align(
    merged: Source | None, parents: Sequence[Source], base: Source | None
) -> tuple[list[TensorFamily], list[str]]:
    """The floating tensors of the merge (of the first parent, before a merge), each with its relatives.

    Returns:
        The families in the model's order, and a line for each tensor that a model lacks or has in another
        shape; such a tensor is compared with no parent, as its means would be of other models than elsewhere.

    Raises:
        MergeError: a model shares less than half of the numbers: it is no parent of this merge.
    """
    first = merged or parents[0]
    families: list[TensorFamily] = []
    problems: list[str] = []
    fitting = dict.fromkeys(range(len(parents) + 1), 0)
    total = 0
    for index, (name, info) in enumerate(first.tensors.items()):
        if not info.dtype.is_float:
            continue
        total += info.count
        found = [_same(model, info) for model in parents]
        based = _same(base, info) if base is not None else None
        for number, one in enumerate([*found, based]):
            fitting[number] += info.count if one else 0
        lines = [_difference(p, info) for p, f in zip(parents, found, strict=True) if f is None]
        if base is not None and based is None:
            lines.append(_difference(base, info))
        problems += lines
        complete = tuple(f for f in found if f) if all(found) else ()
        families.append(
            TensorFamily(
                name=name,
                shape=info.shape,
                merged=Stored(merged, info) if merged else None,
                parents=complete,
                base=based if complete else None,
                index=index,
            )
        )
    relatives: list[Source] = [*parents, *([base] if base else [])]
    for number, model in enumerate(relatives):
        if total and fitting[number] < total / 2:
            share = 100 * fitting[number] / total
            raise MergeError(
                f"{printable(model.label)} fits {printable(first.label)} in {share:.0f} % of the weights only"
                f" ({problems[0]}); give models of one architecture: the merge's own parents and their base"
            )
    return families, problems


def _same(model: Source, info: TensorInfo) -> Stored | None:
    found = model.tensors.get(info.name)
    fits = found is not None and found.shape == info.shape and found.dtype.is_float
    return Stored(model, found) if found is not None and fits else None


def _difference(model: Source, info: TensorInfo) -> str:
    name, label = printable(info.name), printable(model.label)
    found = model.tensors.get(info.name)
    if found is None:
        return f"{label} has no tensor '{name}'"
    if found.shape != info.shape:
        return f"'{name}' is {list(found.shape)} in {label}, not {list(info.shape)}"
    return f"'{name}' is {found.dtype.torch_name} in {label}, no floating tensor"
