"""Float64 formulas of the sphere, written independently, and siblings to try them on."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from merge_models.manifolds import Gram
from merge_models.merge.strategies import (
    AbstractStrategy,
)
from merge_models.merge.strategies.families.span import Mixture
from tests.helpers import merge_states

WEIGHTS = (0.5, 0.3, 0.2)
ZEROS = torch.zeros(6, dtype=torch.float64)


def family(spread: float, count: int = 3, size: tuple[int, ...] = (12, 20), seed: int = 0) -> list[Tensor]:
    """A base and ``count`` siblings at about ``spread`` rad from it, float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator, dtype=torch.float64)
    apart = [torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [base, *(base + spread * each for each in apart)]


def merged(
    points: list[Tensor], strategy: AbstractStrategy, base: Tensor | None = None, **options: Any
) -> Tensor:
    """One tensor's merge, through the whole loop."""
    held = None if base is None else {"w": base.clone()}
    return merge_states([{"w": point} for point in points], strategy, base=held, **options)["w"]


def mixture_of(strategy: Any, gram: Gram) -> Mixture:
    return strategy.resolved(gram.cross.shape[-1]).mixture(gram)


def gap(left: Tensor, right: Tensor) -> float:
    """Distance relative to the size of the right one."""
    return float((left.double() - right.double()).norm() / right.double().norm())


def angle(u: Tensor, v: Tensor) -> Tensor:
    u, v = u / u.norm(), v / v.norm()
    return 2 * torch.atan2((u - v).norm(), (u + v).norm())


def log(m: Tensor, u: Tensor) -> Tensor:
    across = (u - m) - ((u - m) * m).sum() * m
    length = across.norm()
    return across * (angle(m, u) / length) if length > 0 else across


def exp(m: Tensor, v: Tensor) -> Tensor:
    length = v.norm()
    moved = torch.cos(length) * m + torch.sinc(length / math.pi) * v
    return moved / moved.norm()


def karcher_in_full_space(points: list[Tensor], weights: tuple[float, ...], steps: int = 400) -> Tensor:
    """The plain iteration ``m <- exp_m(sum w log_m u)`` on whole tensors, times the mean norm."""
    units = [point / point.norm() for point in points]
    m = cast(Tensor, sum(w * u for w, u in zip(weights, units, strict=True)))
    m = m / m.norm()
    for _ in range(steps):
        step = cast(Tensor, sum(w * log(m, u) for w, u in zip(weights, units, strict=True)))
        m = exp(m, step)
        if step.norm() < 1e-16:
            break
    return m * sum(w * float(point.norm()) for w, point in zip(weights, points, strict=True))


def mixture_over_differences(points: list[Tensor], result: Tensor) -> Tensor:
    """Coefficients of the result over the first point and the differences from it, by least squares."""
    first, *others = [point.flatten() for point in points]
    basis = torch.stack([first, *(other - first for other in others)], dim=1)
    scale = basis.norm(dim=0)
    return torch.linalg.lstsq(basis / scale, result.flatten().unsqueeze(1)).solution[:, 0] / scale


def slerp_formula(a: Tensor, b: Tensor, t: float) -> Tensor:
    w = angle(a, b)
    return (torch.sin((1 - t) * w) * a + torch.sin(t * w) * b) / torch.sin(w)
