"""The mean of rotations in their Lie algebra, with the length that averaging takes away given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

_CANCELLED = 1e-4


@dataclass(frozen=True)
class RotationMean:
    """A mean of rotations, all block-diagonal: ``[blocks, b, b]``.

    Attributes:
        rotation: the mean.
        members: the rotations that it is the mean of: those given, but the identity for one without a
            generator.
        correction: what the mean generator was multiplied by.
        half_turns: how many had no generator.
    """

    rotation: Tensor
    members: tuple[Tensor, ...]
    correction: float = 1.0
    half_turns: int = 0


def rotation_mean(
    rotations: Sequence[Tensor], weights: Sequence[float], chart: str, corrected: bool
) -> RotationMean:
    """Returns the rotation whose generator is the weighted mean of the generators of ``rotations``.

    The generator of R is its logarithm, or in the Cayley chart ``(R - I) (R + I)^-1``. Generators that point
    different ways shorten each other, N of them by about the root of N; ``corrected`` lengthens their mean
    to the weighted mean of their norms, taken over all blocks together. Not so where they cancel: a mean
    under 1e-4 of that norm has no direction worth keeping. A rotation by a half turn has no generator.

    Args:
        rotations: at least one, float64; those that are all equal come back as they are.
        weights: they sum to 1.
        chart: ``cayley`` or ``log``.
        corrected: whether the length is given back.
    """
    if all(torch.equal(rotations[0], other) for other in rotations[1:]):
        return RotationMean(rotations[0], tuple(rotations))
    identity = torch.eye(rotations[0].shape[-1], dtype=rotations[0].dtype).expand_as(rotations[0])
    total, length, members, half_turns = torch.zeros_like(rotations[0]), 0.0, [], 0
    for rotation, weight in zip(rotations, weights, strict=True):
        generator = _generator(rotation, chart)
        if generator is None:
            members.append(identity)
            half_turns += 1
            continue
        members.append(rotation)
        length += weight * float(generator.norm())
        total.add_(generator, alpha=weight)
    shortened = float(total.norm())
    lengthen = corrected and 0.0 < _CANCELLED * length < shortened
    correction = length / shortened if lengthen else 1.0
    return RotationMean(_rotation(correction * total, chart), tuple(members), correction, half_turns)


def _generator(rotation: Tensor, chart: str) -> Tensor | None:
    """The skew matrix of a rotation in a chart; None where there is not one."""
    # Imported late: geoopt, behind it, takes most of a second.
    from merge_models.manifolds.base import CutLocusError
    from merge_models.manifolds.rotations import inverse_cayley, rotation_log

    if chart == "log":
        generator, cut = rotation_log(rotation)
        return None if bool(cut.any()) else generator
    try:
        return inverse_cayley(rotation)
    except CutLocusError:
        return None


def _rotation(generator: Tensor, chart: str) -> Tensor:
    from merge_models.manifolds.rotations import cayley

    return torch.linalg.matrix_exp(generator) if chart == "log" else cayley(generator)
