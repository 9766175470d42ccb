"""From parents and strategies to a Plan: every output tensor, its sources, what is done with it.

Made from headers and configs alone. What a plan accepts, a run can carry out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from merge_models.merge.checkpoint.dtypes import DType, widest
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.layout import OutputTensor
from merge_models.merge.checkpoint.source import Source
from merge_models.merge.errors import PlanError
from merge_models.merge.strategies.base import (
    AbstractSpanStrategy,
    AbstractStrategy,
    BaseModel,
    Grain,
    TensorSpec,
)

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block; part of the definition of every merge, since sums are folded block by block."""

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
               "tok_embeddings.weight", "shared.weight")  # fmt: skip


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one output tensor.

    Attributes:
        name, shape, dtype: as it will be written.
        action: ``merge`` or ``copy``.
        strategy: the resolved strategy where it is merged.
        parents: the tensor in each parent, in the parents' order.
        base: the tensor in the base, where the strategy uses it.
        note: why it is copied, or read under another name; empty where there is nothing to say.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    action: str
    strategy: AbstractStrategy | None
    parents: tuple[TensorInfo, ...]
    base: TensorInfo | None = None
    note: str = ""

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.size

    @property
    def bytes_in(self) -> int:
        """Bytes of one reading of its sources."""
        return sum(info.nbytes for info in self._sources())

    def _sources(self) -> Iterable[TensorInfo]:
        return self.parents if self.base is None else (*self.parents, self.base)

    def spec(self, seed: int = 0) -> TensorSpec:
        return TensorSpec(self.name, self.shape, seed)

    def blocks(self) -> list[tuple[int, int]]:
        """Element ranges that are worked on alone; none for an empty tensor."""
        count = self.count
        step = BLOCK_ELEMENTS
        grain = self.strategy.grain if self.strategy else Grain.ELEMENT
        if grain is Grain.TENSOR:
            step = max(count, 1)
        elif grain is Grain.ROW:
            columns = count // max(self.spec().rows, 1)
            step = max(1, BLOCK_ELEMENTS // max(columns, 1)) * max(columns, 1)
        return [(start, min(start + step, count)) for start in range(0, count, step)]

    def worker_bytes(self) -> int:
        """Memory that a worker needs for one of its blocks: storage buffers, and wide copies where made."""
        largest = max((stop - start for start, stop in self.blocks()), default=0)
        storage = largest * (sum(i.dtype.size for i in self._sources()) + self.dtype.size)
        if self.strategy is None or is_fused(self.strategy):
            return storage
        return storage + largest * 4 * (3 * len(self.parents) + 3)


def is_fused(strategy: AbstractStrategy) -> bool:
    """Whether blocks go from storage to storage through a block kernel, without wide copies."""
    return isinstance(strategy, AbstractSpanStrategy) and strategy.per == "tensor"


@dataclass(frozen=True)
class Plan:
    """All output tensors in writing order, and what is left behind.

    Attributes:
        tensors: the output.
        dropped: (tensor name, model, reason) of every input tensor that has no part in it.
        untied: the output holds a head of its own although the donor's config ties it.
    """

    tensors: tuple[TensorPlan, ...]
    dropped: tuple[tuple[str, str, str], ...]
    untied: bool

    @property
    def bytes_in(self) -> int:
        return sum(tensor.bytes_in for tensor in self.tensors)

    @property
    def bytes_out(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Elements of the output."""
        return sum(tensor.count for tensor in self.tensors)

    def worker_bytes(self) -> int:
        return max((tensor.worker_bytes() for tensor in self.tensors), default=0)

    def outputs(self) -> list[OutputTensor]:
        return [OutputTensor(t.name, t.dtype, t.shape) for t in self.tensors]

    def main_dtype(self) -> DType | None:
        """The floating dtype of most output elements."""
        counts: dict[str, int] = {}
        by_code = {t.dtype.code: t.dtype for t in self.tensors if t.dtype.is_float}
        for tensor in self.tensors:
            if tensor.dtype.is_float:
                counts[tensor.dtype.code] = counts.get(tensor.dtype.code, 0) + tensor.count
        return by_code[max(counts, key=lambda code: counts[code])] if counts else None


def make_plan(
    parents: Sequence[Source],
    base: Source | None,
    strategy_for: Callable[[str], AbstractStrategy],
    out_dtype: DType | None = None,
) -> Plan:
    """Fits parents and strategies together.

    Args:
        parents: the models to merge.
        base: the base model, for strategies that use one and as donor of order and config.
        strategy_for: gives each tensor's strategy, resolved for ``len(parents)`` parents.
        out_dtype: dtype of merged tensors; by default that of the sources, the widest where they differ.

    Raises:
        PlanError: a tensor is missing or has another shape somewhere, models do not fit each other or
            the strategy, or there is nothing to merge.
    """
    donor = base if base is not None else parents[0]
    _check_configs(parents, base)
    lookup = _Lookup(parents, base)
    tensors, dropped, untied = [], [], False
    for name in _ordered_names(donor, parents):
        if base is not None and name in base.tensors and not any(name in p.tensors for p in parents):
            dropped.append((name, base.label, "only the base has it"))
            continue
        strategy = strategy_for(name)
        _check_count(strategy, len(parents), base)
        planned = _plan_tensor(name, strategy, lookup, out_dtype)
        tensors.append(planned)
        untied = untied or (name in _HEADS and name not in donor.tensors)
        tied = name in _HEADS and donor.config.get("tie_word_embeddings") is True
        untied = untied or (tied and any(p.config.get("tie_word_embeddings") is False for p in parents))
    if not tensors:
        raise PlanError(f"{donor.label}: holds no tensors")
    return Plan(tuple(tensors), tuple(dropped), untied)


def _ordered_names(donor: Source, parents: Sequence[Source]) -> list[str]:
    names = dict.fromkeys(donor.tensors)
    for parent in parents:
        names.update(dict.fromkeys(parent.tensors))
    return list(names)


def _check_count(strategy: AbstractStrategy, count: int, base: Source | None) -> None:
    low, high = strategy.parents
    if count < low or (high is not None and count > high):
        wanted = (
            f"exactly {low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        )
        raise PlanError(f"{strategy.name} merges {wanted} models, not {count}")
    if strategy.base_model is BaseModel.REQUIRED and base is None:
        raise PlanError(f"{strategy.name} needs a base model: pass --base (base_model: in a recipe)")


def _check_configs(parents: Sequence[Source], base: Source | None) -> None:
    models = [*parents, *([base] if base is not None else [])]
    for model in models:
        quantised = model.config.get("quantization_config")
        if quantised:
            method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
            raise PlanError(f"{model.label}: is quantised ({printable(str(method))}); dequantise it first")
    kinds = [(m.label, m.config["architectures"]) for m in models if m.config.get("architectures")]
    for label, kind in kinds[1:]:
        if kind != kinds[0][1]:
            raise PlanError(
                f"architectures differ: {kinds[0][0]} is {_words(kinds[0][1])}, {label} is {_words(kind)};"
                " merge models of one architecture"
            )


def _words(value: Any) -> str:
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


class _Lookup:
    """Finds a tensor in a model, under another name where weights are tied."""

    def __init__(self, parents: Sequence[Source], base: Source | None) -> None:
        self.parents = parents
        self.base = base

    def find(self, model: Source, name: str) -> TensorInfo | None:
        if name in model.tensors:
            return model.tensors[name]
        alias = getattr(model, "metadata", {}).get(name)
        if alias in model.tensors:
            return model.tensors[alias]
        if name in _HEADS and model.config.get("tie_word_embeddings", True):
            found = [n for n in model.tensors if n.endswith(_EMBEDDINGS)]
            return model.tensors[found[0]] if len(found) == 1 else None
        return None


def _plan_tensor(
    name: str, strategy: AbstractStrategy, lookup: _Lookup, out_dtype: DType | None
) -> TensorPlan:
    shown = printable(name)
    infos = [_required(lookup, parent, name) for parent in lookup.parents]
    base = None
    if lookup.base is not None and strategy.base_model is not BaseModel.UNUSED:
        base = _required(lookup, lookup.base, name)
    labels = [model.label for model in lookup.parents]
    _check_shapes(shown, [*zip(labels, infos, strict=True)], base, lookup.base)
    renamed = next((i.name for i in infos if i.name != name), "")
    note = f"read from {printable(renamed)} where tied" if renamed else ""
    shape = infos[0].shape
    floats = {info.dtype.is_float for info in infos}
    if floats == {False}:
        codes = sorted({info.dtype.code for info in infos})
        if len(codes) > 1:
            raise PlanError(f"tensor '{shown}' is {' and '.join(codes)}; whole numbers are not converted")
        copied = "not floating point: must be equal in all models"
        return TensorPlan(name, shape, infos[0].dtype, "copy", None, tuple(infos), None, copied)
    if len(floats) > 1:
        kinds = ", ".join(f"{m} has {i.dtype.code}" for m, i in zip(labels, infos, strict=True))
        raise PlanError(f"tensor '{shown}' is floating point in some models only: {kinds}")
    dtype = out_dtype or widest([i.dtype for i in [*infos, *([base] if base else [])]])
    return TensorPlan(name, shape, dtype, "merge", strategy, tuple(infos), base, note)


def _required(lookup: _Lookup, model: Source, name: str) -> TensorInfo:
    info = lookup.find(model, name)
    if info is None:
        others = [m for m in (*lookup.parents, lookup.base) if m is not None]
        has = next(m.label for m in others if name in m.tensors)
        missing = sum(lookup.find(model, n) is None for m in others for n in m.tensors if m is not model)
        more = f" (and {missing - 1} more)" if missing > 1 else ""
        raise PlanError(
            f"{model.label}: has no tensor '{printable(name)}'{more}, which {has} has;"
            " are they the same architecture, saved with all their weights?"
        )
    return info


def _check_shapes(
    shown: str,
    infos: list[tuple[str, TensorInfo]],
    base: TensorInfo | None,
    base_model: Source | None,
) -> None:
    every = [*infos]
    if base is not None and base_model is not None:
        every.append((base_model.label, base))
    label, first = every[0]
    for other, info in every[1:]:
        if info.shape != first.shape:
            vocabulary = ""
            if shown.endswith((*_EMBEDDINGS, *_HEADS)) and info.shape[1:] == first.shape[1:]:
                vocabulary = "; their vocabularies differ"
            raise PlanError(
                f"tensor '{shown}' is {list(first.shape)} in {label} but {list(info.shape)} in {other}"
                + vocabulary
            )
