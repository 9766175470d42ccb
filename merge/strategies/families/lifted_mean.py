"""The Fréchet mean of raw numbers that are lifted onto a manifold and brought back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.errors import PlanError
from merge_models.merge.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from merge_models import manifolds
else:
    torch = LazyModule("torch")
    manifolds = LazyModule("merge_models.manifolds")


def event_of(case: Case, manifold: str, per: str, heads: int) -> tuple[int, ...]:
    """Returns the shape of the raw numbers of one point.

    Args:
        case: the task.
        manifold: its name.
        per: what is one point: ``tensor``, ``row`` or ``head``.
        heads: how many runs of rows are a head each.
    """
    is_vector = manifolds.find_manifold(manifold).event == "vector"
    if per == "row":
        return (case.columns,)
    if per == "head":
        shape = (case.rows // heads, case.columns)
        return (shape[0] * shape[1],) if is_vector else shape
    return (case.count,) if is_vector else case.shape


def refusal(case: Case, manifold: str, per: str, heads: int) -> str:
    """Returns why a tensor has no points on a manifold, in words; empty where its shape allows them."""
    if per == "head" and (len(case.shape) < 2 or case.rows % heads):
        return f"{case.rows} rows are no {heads} heads of equal size"
    return manifolds.find_manifold(manifold).accepts(event_of(case, manifold, per, heads)) or ""


@dataclass(frozen=True)
class LiftedMean:
    """Merges blocks that are whole points.

    Attributes:
        shares: of the parents, summing to 1.
        manifold: the manifold's name.
        event: the shape of one point's raw numbers.
        averages: whether what has no mean is averaged, or stops the merge.
        name: of the tensor, for messages.
    """

    shares: tuple[float, ...]
    manifold: str
    event: tuple[int, ...]
    averages: bool
    name: str

    def combine(self, block: Block, survey: None) -> Tensor:
        """Returns the block's mean, float64, as the difference of models or task vectors.

        Raises:
            PlanError: some points have no mean, and are not to be averaged.
        """
        del survey
        base = block.stored_base
        used = [(share, x) for share, x in zip(self.shares, block.stored, strict=True) if share > 0]
        shares = torch.tensor([share for share, _ in used], dtype=torch.float64)
        values = torch.stack([x.double().reshape(-1, *self.event) for _, x in used], 1)
        points = values if base is None else values - base.double().reshape(-1, 1, *self.event)
        mean, exists = self._mean(points, shares)
        flat = _average(points, shares)
        merged = torch.where(exists.reshape(-1, *[1] * len(self.event)), mean, flat)
        if base is not None:
            merged += base.double().reshape(-1, *self.event)
        # The way onto the manifold and back rounds; parents that agree need not go.
        equal = (values == values[:, :1]).all(1)
        return torch.where(equal, values[:, 0], merged)

    def _mean(self, points: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``[B, *event]`` of points ``[B, N, *event]``, and which of them there are ``[B]``."""
        manifold = manifolds.find_manifold(self.manifold).of(self.event)
        lifted = manifold.lift(points)
        defined = lifted.defined.all(1)
        safe = torch.where(defined.reshape(-1, *[1] * (points.dim() - 1)), points, _sound(points))
        lifted = manifold.lift(safe) if not bool(defined.all()) else lifted
        mean = manifolds.frechet_mean(manifold, lifted.point, shares)
        exists = defined & mean.converged & lifted.defined.all(1)
        if not self.averages and not bool(exists.all()):
            why = mean.reason if bool(defined.all()) else f"a point {manifold.undefined}"
            raise PlanError(f"{why}; leave it out (only:), or set otherwise: linear")
        return manifold.lower(mean.point, _average(lifted.rest, shares)), exists


def _average(values: Tensor, shares: Tensor) -> Tensor:
    """``sum_i w_i x_i`` over the second dimension, as differences from the first point."""
    first, weights = values[:, :1], shares.reshape(1, -1, *[1] * (values.dim() - 2))
    return values[:, 0] + ((values - first) * weights).sum(1)


def _sound(points: Tensor) -> Tensor:
    """Points that every manifold has, in the place of some that it has not."""
    shape = points.shape[2:]
    if len(shape) == 1:
        one = torch.full(shape, 1 / shape[0], dtype=points.dtype)
    else:
        one = torch.eye(*shape, dtype=points.dtype)
    return one.expand_as(points)
