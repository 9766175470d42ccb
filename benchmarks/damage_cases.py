"""Merges from harmless to destroyed, of the nets of ``small_nets``: what the verdict's thresholds are
calibrated on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.small_nets import LANGUAGES
from merge_models.merge import merge
from merge_models.merge.strategies.registry import find_strategy

State = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A merge and the models that it is to be judged against.

    Attributes:
        kind: what was done, for the table.
        parents: names of the family's models.
        build: writes the merge, given the family's folders and the target folder.
        base: name of the base, where the method has one.
    """

    name: str
    kind: str
    parents: tuple[str, ...]
    build: Callable[[dict[str, Path], Path], None] = field(repr=False)
    base: str | None = "base"


def _strategy(name: str, parents: Sequence[str], method: str, kind: str, **settings: object) -> Case:
    kernel = find_strategy(method)

    def build(folders: dict[str, Path], out: Path) -> None:

        base = None if not kernel.base_model.is_origin else folders["base"]
        merge([folders[p] for p in parents], kernel(**settings), base=base, out=out)

    return Case(name, kind, tuple(parents), build)


def _edit(name: str, parents: Sequence[str], kind: str, change: Callable[[list[State]], State]) -> Case:
    def build(folders: dict[str, Path], out: Path) -> None:
        shutil.copytree(folders[parents[0]], out)
        states = [load_file(folders[p] / "model.safetensors") for p in parents]
        state = {key: value.contiguous() for key, value in change(states).items()}
        save_file(state, out / "model.safetensors", {"format": "pt"})

    return Case(name, kind, tuple(dict.fromkeys(parents)), build)


def _each_matrix(state: State, change: Callable[[str, Tensor], Tensor]) -> State:
    return {key: change(key, value) if value.ndim == 2 else value for key, value in state.items()}


def _noise(scale: float) -> Callable[[list[State]], State]:
    """Gaussian noise of ``scale`` times each matrix's own standard deviation."""

    def change(states: list[State]) -> State:
        generator = torch.Generator().manual_seed(0)
        return _each_matrix(
            states[0], lambda _, w: w + scale * w.std() * torch.randn(w.shape, generator=generator)
        )

    return change


def _scaled(factor: float) -> Callable[[list[State]], State]:
    return lambda states: _each_matrix(states[0], lambda _, w: factor * w)


def _truncated(rank: int) -> Callable[[list[State]], State]:
    def low_rank(name: str, w: Tensor) -> Tensor:
        if "embed" in name or "lm_head" in name or "wte" in name or "wpe" in name:
            return w
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return (u[:, :rank] * s[:rank]) @ v[:rank]

    return lambda states: _each_matrix(states[0], low_rank)


def _layer(name: str) -> int | None:
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _relayered(order: Sequence[int]) -> Callable[[list[State]], State]:
    """Layer i is the parent's layer ``order[i]``."""

    def change(states: list[State]) -> State:
        state = states[0]

        def source(key: str) -> str:
            layer = _layer(key)
            return key if layer is None else key.replace(f".{layer}.", f".{order[layer]}.", 1)

        return {key: state[source(key)].clone() for key in state}

    return change


def _layers_of_second(layers: Sequence[int]) -> Callable[[list[State]], State]:
    return lambda states: {key: states[_layer(key) in layers][key] for key in states[0]}


def permuted(state: State, seed: int = 0) -> State:
    """The same function with the MLPs' hidden units in another order (all layers)."""
    generator = torch.Generator().manual_seed(seed)
    out = dict(state)
    orders: dict[str, Tensor] = {}
    for key, value in state.items():
        for inward, outward, axis_in, axis_out in (
            ("mlp.gate_proj", "mlp.down_proj", 0, 1),
            ("mlp.up_proj", "mlp.down_proj", 0, 1),
            ("mlp.c_fc", "mlp.c_proj", 1, 0),
        ):
            if f".{inward}." not in key:
                continue
            axis = axis_in if value.ndim == 2 else 0
            layer = key.split(".mlp.")[0]
            if layer not in orders:
                orders[layer] = torch.randperm(value.shape[axis], generator=generator)
            out[key] = value.index_select(axis, orders[layer])
            down = key.replace(inward, outward).replace(".bias", ".weight")
            out[down] = state[down].index_select(axis_out, orders[layer])
    return out


def _soup_with_permuted(share: float) -> Callable[[list[State]], State]:
    def change(states: list[State]) -> State:
        other = permuted(states[0])
        return {key: (1 - share) * value + share * other[key] for key, value in states[0].items()}

    return change


def cases() -> Iterator[Case]:
    """Every case of a family."""
    four, three = LANGUAGES, LANGUAGES[:3]
    many = (*LANGUAGES, "again", "base")
    yield _strategy("one parent", ["red"], "linear", "identity")
    yield _strategy("equal parents", ["red", "red"], "linear", "identity")
    yield _strategy("two runs of one expert", ["red", "again"], "linear", "soup")
    yield _strategy("two runs, slerp", ["red", "again"], "slerp", "soup")
    yield _strategy("two runs, karcher", ["red", "again"], "karcher", "soup")
    yield _strategy("expert and base", ["red", "base"], "linear", "soup")
    yield _strategy("two experts", ["red", "green"], "linear", "soup")
    yield _strategy("four experts", four, "linear", "soup")
    yield _strategy("six models", many, "linear", "soup")
    yield _strategy("four experts, karcher", four, "karcher", "soup")
    yield _strategy("four experts, norm_mean about the base", four, "norm_mean", "soup", origin="base")
    yield _strategy("four experts, model_stock", four, "model_stock", "soup")
    for factor in (0.25, 0.5, 1.0, 1.5, 2.5, 5.0):
        yield _strategy(f"deltas x {factor}", four, "task_arithmetic", "scaled deltas", lambda_=factor)
    for factor in (-0.5, -1.5, -4.0):
        yield _strategy(f"deltas x {factor}", three, "task_arithmetic", "negated deltas", lambda_=factor)
    yield _strategy("ties", four, "ties", "sparse", density=0.3)
    yield _strategy("dare_linear .5", four, "dare_linear", "sparse", density=0.5, lambda_=0.5)
    yield _strategy("dare_linear .05", four, "dare_linear", "sparse", density=0.05, lambda_=1.0)
    for far in ("far", "farther"):
        yield _strategy(f"expert and {far} tune", ["red", far], "linear", "far fine-tune")
        yield _strategy(
            f"expert and {far} tune, deltas x 1", ["red", far], "task_arithmetic", "far fine-tune"
        )
    yield _strategy("two far tunes", ["far", "farther"], "linear", "far fine-tune")
    yield _strategy("two far tunes, karcher", ["far", "farther"], "karcher", "far fine-tune")
    for method in ("linear", "slerp", "karcher"):
        yield _strategy(f"expert and stranger, {method}", ["red", "stranger"], method, "other initialisation")
    yield _strategy(
        "mostly expert, some stranger",
        ["red", "stranger"],
        "linear",
        "other initialisation",
        weight=(0.9, 0.1),
    )
    yield _strategy("stranger's deltas", ["red", "stranger"], "ties", "other initialisation", density=0.5)
    for share in (0.5, 0.2):
        yield _edit(f"soup with permuted copy, {share}", ["red"], "permutation", _soup_with_permuted(share))
    for scale in (0.02, 0.1, 0.3, 0.6, 1.0, 3.0):
        yield _edit(f"noise {scale}", ["red"], "noise", _noise(scale))
    for factor in (0.97, 0.8, 0.5, 0.2, 1.3, 2.0):
        yield _edit(f"matrices x {factor}", ["red"], "scaled weights", _scaled(factor))
    for rank in (48, 24, 8, 2):
        yield _edit(f"rank {rank}", ["red"], "truncated", _truncated(rank))
    yield _edit("layers reversed", ["red"], "layers", _relayered((3, 2, 1, 0)))
    yield _edit("layer 1 again as layer 2", ["red"], "layers", _relayered((0, 1, 1, 3)))
    yield _edit("layer 2 of another expert", ["red", "green"], "layers", _layers_of_second([2]))
    yield _edit("layer 2 of a stranger", ["red", "stranger"], "layers", _layers_of_second([2]))
    yield _edit("layers 1 and 2 of a stranger", ["red", "stranger"], "layers", _layers_of_second([1, 2]))
