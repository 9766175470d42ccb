"""REPAIR (Jordan et al. 2023): the scale of each unit's activations set back to the parents' mean.

Averaging weights averages what units compute, and the variance of an average of imperfectly correlated
signals is smaller than theirs. For each output unit of a linear module the merge's activations Z are mapped
to ``(Z - mu) / sigma * goal_sigma + goal_mu``, where the goals are the parents' weighted means of standard
deviation and mean; the map is folded into the module's weight and bias. Modules without a bias are only
rescaled (``goal_mu`` is then out of reach). The paper does this to the convolutions of image nets by batch
norms; here it is every linear module, Conv1D and convolution alike: on merges of small trained language
models that lowers the loss more than the modules that write to the residual stream, or the others, do alone.

All calibration data goes through the merge in one batch: each module is measured and mended as the pass
reaches it, so later ones see the mended outputs of earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from merge_models.evals.measures.activations.sites import first_tensor
from merge_models.merge.checkpoint.layers import place_of

Run = Callable[[nn.Module], Any]

STRENGTHS = (1.0, 0.5, 0.0)
"""Exponents of the scales that are tried where there is a loss to choose by."""

LARGEST_FACTOR = 4.0
STILL = 1e-3
"""Units whose deviation, in the merge or in the goal, is under this share of the module's median are left."""


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each output unit of a module, [units] float64."""

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True)
class Mended:
    """A module's map: ``z * scale + shift``, and its variance ratios to the parents (medians over units)."""

    name: str
    scale: Tensor
    shift: Tensor | None
    before: float | None
    after: float | None

    @property
    def layer(self) -> int | None:
        return place_of(f"{self.name}.").layer


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns modules that may be rescaled: linear, with a weight of their own (a tied one is two
    modules')."""
    owners: dict[int, int] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    return {
        name: module
        for name, module in model.named_modules()
        if out_dimension(module) is not None and owners[id(module._parameters["weight"])] == 1
    }


def out_dimension(module: nn.Module) -> int | None:
    """Returns which dimension of a module's weight counts output units; None where it is no linear module."""
    weight = module._parameters.get("weight")
    if weight is None or isinstance(module, nn.Embedding) or any(True for _ in module.children()):
        return None
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return 0
    return 1 if weight.ndim == 2 and type(module).__name__ == "Conv1D" else None  # transformers' GPT-2


def _unit_dimension(module: nn.Module) -> int:
    """Which dimension of a module's output counts its units."""
    return 1 if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else -1


def _moments(output: Tensor, module: nn.Module, drop_first: bool) -> Moments:
    units = output.movedim(_unit_dimension(module), -1)
    if drop_first and units.ndim > 2 and units.shape[1] > 1:
        units = units[:, 1:]
    flat = units.reshape(-1, units.shape[-1]).double()
    return Moments(flat.mean(0), flat.std(0, correction=0))


@torch.inference_mode()
def measure(model: nn.Module, names: Collection[str], run: Run, drop_first: bool) -> dict[str, Moments]:
    """Measures moments of the named modules over one pass, in the order in which they run."""
    found: dict[str, Moments] = {}

    def look(name: str, module: nn.Module, output: Tensor) -> None:
        found[name] = _moments(output, module, drop_first)

    with _watched(model, names, look):
        run(model)
    return found


@torch.inference_mode()
def mend(
    model: nn.Module, goals: dict[str, Moments], run: Run, drop_first: bool, strength: float = 1.0
) -> list[Mended]:
    """Returns the maps that bring a model's modules to their goals; the model itself is not changed."""
    found: list[Mended] = []

    def change(name: str, module: nn.Module, output: Tensor) -> Tensor | None:
        own, goal = _moments(output, module, drop_first), goals[name]
        if not (torch.isfinite(own.deviation).all() and torch.isfinite(goal.deviation).all()):
            return None
        scale = _factors(own.deviation, goal.deviation) ** strength
        shift = None
        if module._parameters.get("bias") is not None:
            centre = own.mean + strength * (goal.mean - own.mean)
            shift = centre - scale * own.mean
        before = _ratio(own.deviation, goal.deviation)
        found.append(Mended(name, scale, shift, before, _ratio(scale * own.deviation, goal.deviation)))
        shape = [1] * output.ndim
        shape[_unit_dimension(module)] = -1
        mended = output * scale.to(output).reshape(shape)
        return mended if shift is None else mended + shift.to(output).reshape(shape)

    with _watched(model, goals, change):
        run(model)
    return found


def _factors(own: Tensor, goal: Tensor) -> Tensor:
    """goal / own, between 1/4 and 4; 1 for units that hardly move in either."""
    floor_own, floor_goal = STILL * own.median(), STILL * goal.median()
    moving = (own > floor_own) & (goal > floor_goal)
    factors = torch.where(moving, goal / own.clamp_min(torch.finfo(own.dtype).tiny), torch.ones_like(own))
    return factors.clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)


def _ratio(own: Tensor, goal: Tensor) -> float | None:
    """Median over moving units of own variance over the goal's."""
    moving = goal > STILL * goal.median()
    if not moving.any():
        return None
    return float((own[moving] / goal[moving]).square().quantile(0.5))


Undo = list[tuple[nn.Parameter, Tensor]]


@torch.no_grad()
def fold(model: nn.Module, mended: Sequence[Mended]) -> Undo:
    """Puts the maps into the modules' weights and biases, in float64 rounded once; returns what they were."""
    undo: Undo = []
    for step in mended:
        module = model.get_submodule(step.name)
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        assert weight is not None
        undo.append((weight, weight.detach().clone()))
        shape = [1] * weight.ndim
        shape[out_dimension(module) or 0] = -1
        scale = step.scale.to(weight.device)
        weight.copy_((weight.double() * scale.reshape(shape)).to(weight.dtype))
        if bias is not None:
            undo.append((bias, bias.detach().clone()))
            shift = 0 if step.shift is None else step.shift.to(bias.device)
            bias.copy_((bias.double() * scale + shift).to(bias.dtype))
    return undo


@torch.no_grad()
def unfold(undo: Undo) -> None:
    """Puts back what ``fold`` returned."""
    for parameter, value in undo:
        parameter.copy_(value)


def goals_of(parents: Sequence[dict[str, Moments]], weights: Sequence[float]) -> dict[str, Moments]:
    """Returns weighted means of the parents' means and deviations, for the modules that ran in all of
    them."""
    first, *others = parents
    shared = [name for name in first if all(name in other for other in others)]

    def mean(name: str, part: str) -> Tensor:
        parts = [w * getattr(p[name], part) for w, p in zip(weights, parents, strict=True)]
        return torch.stack(parts).sum(0)

    return {name: Moments(mean(name, "mean"), mean(name, "deviation")) for name in shared}


@contextmanager
def _watched(
    model: nn.Module, names: Collection[str], take: Callable[[str, nn.Module, Tensor], Tensor | None]
) -> Iterator[None]:
    """Hooks that may replace the outputs of modules; a module that runs twice in a pass is not touched."""
    seen: set[str] = set()

    def hook_of(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if name in seen or first_tensor(output) is not output:
                return None
            seen.add(name)
            return take(name, module, output)

        return hook

    handles = []
    try:
        for name in names:
            handles.append(model.get_submodule(name).register_forward_hook(hook_of(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
