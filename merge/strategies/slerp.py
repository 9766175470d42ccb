"""SLERP: the point at t on the arc between two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.strategies.families.near_gram import NearGram
from merge_models.merge.strategies.families.span import FixedMixture, Mixture, span_kernel
from merge_models.merge.strategies.families.spherical import arc_mixture, quick_arc

if TYPE_CHECKING:
    from merge_models.manifolds import Gram


@dataclass(frozen=True)
class Slerp(AbstractStrategy):
    """Goes from one model towards another along the arc between their tensors.

    ``(sin((1-t) W) a + sin(t W) b) / sin W``, W the angle between two tensors.

    Kernel: linear along an arc. Carrier: the sphere of each tensor. Source: Shoemake 1985, "Animating
    rotation with quaternion curves". ``t: 0`` is the first model; a recipe's ``base_model`` is that model,
    as in mergekit.

    As in mergekit the coefficients of SLERP multiply the tensors as they are, not their unit vectors: for
    unequal norms the norm on the way is not exactly the interpolated one. mergekit takes the straight line
    when the cosine is above 0.9995, which is where most sibling tensors are; here the arc is exact at every
    angle. The straight line is left for opposite tensors (within 1e-6 rad) and where one of them is zero:
    there is no arc (``arc: false``).
    """

    name: ClassVar[str] = "slerp"
    carrier: ClassVar[str] = "sphere"
    source: ClassVar[str] = "Shoemake 1985, doi:10.1145/325334.325242"
    parents: ClassVar[tuple[int, int | None]] = (2, 2)
    base_model: ClassVar[BaseModel] = BaseModel.PARENT

    t: float = parameter(0.5, "where on the arc: 0 the first model, 1 the second", minimum=0, maximum=1)

    def intended_shares(self, count: int) -> tuple[float, ...]:
        del count
        return 1 - self.t, self.t

    def kernel(self, case: Case) -> Kernel:
        return span_kernel(case, self.mixture, self.quick)

    def mixture(self, gram: Gram, has_base: bool = False) -> Mixture:
        """Returns coefficients of the two points."""
        del has_base
        return arc_mixture(gram, self.t)

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        """Returns ``mixture`` of one tensor without torch, where nothing is degenerate."""
        del has_base
        return quick_arc(gram, self.t)
