"""Arcs of great circles: angles, and points of the sphere as coefficients over unit vectors.

Angles come from half chords (Kahan, "How futile are mindless assessments of roundoff", section 12): arccos
of a cosine loses every angle below 1e-8 rad in float64. This module needs torch alone.
"""

import math

import torch
from torch import Tensor

from merge_models.manifolds.span import coefficients as span_coefficients


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Returns angle `[...]` in [0, pi] between unit vectors `[..., n]`, to rounding at both ends (Kahan).

    >>> first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> angle_between(first, second)
    tensor(1.5708)
    """
    return 2 * torch.atan2((first - second).norm(dim=-1), (first + second).norm(dim=-1))


def sinc(angle: Tensor) -> Tensor:
    """Returns `sin(angle) / angle`, 1 at 0."""
    return torch.sinc(angle / math.pi)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Returns `sum_i w_i v_i` for weights `[..., N]` and values `[..., N, *event]`."""
    event = values.dim() - weights.dim()
    return (weights.reshape(*weights.shape, *[1] * event) * values).sum(dim=-1 - event)


def mean_coefficients(units: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """Returns coefficients c `[..., N]` with `sum_i c_i u_i = mean`, for the weighted Karcher mean of the
    units.

    `weights` are those of the mean, on any scale.

    At the mean the weighted logs sum to zero, `sum_i w_i t_i / sin t_i (u_i - cos t_i m) = 0`, which
    says that m is along `sum_i (w_i t_i / sin t_i) u_i`. So c is explicit, positive and needs no solution of
    a system that nearly equal parents make singular: an error e in an angle t moves it by t e / 3.

    Where the point is no such mean (an iteration that did not converge, antipodes) the coefficients are those
    of least norm that give the point.

    >>> units = torch.eye(2, dtype=torch.float64)
    >>> mean = units.sum(0) / units.sum(0).norm()
    >>> mean_coefficients(units, mean, torch.tensor([0.5, 0.5], dtype=torch.float64))
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """
    raw = weights / sinc(angle_between(mean.unsqueeze(-2), units)).clamp_min(1e-12)
    length = weighted_sum(raw, units).norm(dim=-1, keepdim=True)
    explicit = raw / torch.where(length > 0, length, torch.ones_like(length))
    gap = (weighted_sum(explicit, units) - mean).norm(dim=-1)
    off = ~(gap <= 1e-8)
    if bool(off.any()):
        explicit = explicit.clone()
        explicit[off] = span_coefficients(units[off], mean[off])
    return explicit


def step_coefficients(units: Tensor, coefficients: Tensor, weights: Tensor) -> Tensor:
    """Returns one Karcher step, `exp_m(sum_i w_i log_m u_i)` from `m = sum_i c_i u_i`, as coefficients `[...,
    N]`.

    With t_i the angle from m to u_i and T the sum of the logs: `cos|T| m + sinc|T| T`, and
    `log_m u_i = (t_i / sin t_i) (u_i - cos t_i m)`, so both are combinations of the units.

    >>> units, half = torch.eye(2, dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    >>> step_coefficients(units, torch.tensor([1.0, 0.0], dtype=torch.float64), half)
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """
    mean = weighted_sum(coefficients, units)
    angle = angle_between(mean.unsqueeze(-2), units)
    pull = weights / sinc(angle).clamp_min(1e-12)
    back = (pull * torch.cos(angle)).sum(dim=-1, keepdim=True)
    tangent = weighted_sum(pull, units) - back * mean
    length = tangent.norm(dim=-1, keepdim=True)
    return (torch.cos(length) - sinc(length) * back) * coefficients + sinc(length) * pull


def slerp_coefficients(angle: Tensor, t: Tensor | float) -> Tensor:
    """Returns `[..., 2]`: sin((1-t) a)/sin a and sin(t a)/sin a (Shoemake 1985), accurate as the angle goes
    to 0.

    At the antipode (angle pi) the arc is not unique and the coefficients are not bounded.

    >>> slerp_coefficients(torch.tensor(torch.pi / 2), 0.5)
    tensor([0.7071, 0.7071])
    """
    t = torch.as_tensor(t, dtype=angle.dtype, device=angle.device)
    ends = torch.stack(torch.broadcast_tensors(1 - t, t, angle)[:2], dim=-1)
    return ends * sinc(ends * angle.unsqueeze(-1)) / sinc(angle).unsqueeze(-1)
