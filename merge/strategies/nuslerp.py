"""NuSLERP: SLERP by weights, of tensors, rows or columns, of models or of their task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel, Moments, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies.families import near_points
from merge_models.merge.strategies.families.near_gram import NearGram
from merge_models.merge.strategies.families.span import FixedMixture, Mixture, row_kernel, span_kernel
from merge_models.merge.strategies.families.spherical import EQUAL_TO_BASE, about_base, arc_mixture, quick_arc

if TYPE_CHECKING:
    import torch

    from merge_models.manifolds import Gram
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class NuSlerp(AbstractStrategy):
    """Goes along the arc between two models, or between their task vectors, by tensor, row or column.

    It is SLERP at ``t = w_2 / (w_1 + w_2)``; with a base ``base + slerp(x_1 - base, x_2 - base)``.

    Kernel: linear along an arc. Carrier: the sphere of each tensor, row or column, about zero or about the
    base. Source: mergekit's nuslerp (Shoemake 1985).

    The names are mergekit's: without ``nuslerp_flatten`` a point is a vector along the last dimension (a row
    of the weight, all that feeds one output), and with ``nuslerp_row_wise`` too one along the first (a
    column). Tensors of one dimension are one point either way. Here a row of a convolution is all that feeds
    one output channel, where mergekit takes the last spatial axis alone. A negative weight goes on along the
    arc, beyond the other model; weights that cancel out go to its middle (t is 0.5), as in mergekit. Where
    points are opposite or zero there is no arc, and the straight line is taken.
    """

    name: ClassVar[str] = "nuslerp"
    carrier: ClassVar[str] = "sphere"
    source: ClassVar[str] = "mergekit; Shoemake 1985, doi:10.1145/325334.325242"
    base_model: ClassVar[BaseModel] = BaseModel.OPTIONAL
    parents: ClassVar[tuple[int, int | None]] = (2, 2)

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True)
    nuslerp_flatten: bool = parameter(True, "one point per tensor")
    nuslerp_row_wise: bool = parameter(False, "unless flattened: one point per column instead of one per row")

    @property
    def per(self) -> str:
        """``tensor``, ``row`` or ``column``."""
        return "tensor" if self.nuslerp_flatten else "column" if self.nuslerp_row_wise else "row"

    @property
    def t(self) -> float:
        """Where on the arc: 0 the first model, 1 the second, beyond them with a negative weight."""
        assert isinstance(self.weight, tuple)
        size, total = math.fsum(map(abs, self.weight)), math.fsum(self.weight)
        return self.weight[-1] / total if abs(total) > 1e-6 * size else 0.5

    def kernel(self, case: Case) -> Kernel:
        """Makes a kernel of one point per tensor, row or column; a tensor of one dimension is one point."""
        if self.per == "tensor":
            return span_kernel(case, self.mixture, self.quick)
        if self.per == "column" and len(case.shape) >= 2:
            return row_kernel(case, self.mixture, survey=self._survey_columns)
        return row_kernel(case, self.mixture)

    def mixture(self, gram: Gram, has_base: bool = False) -> Mixture:
        """Returns coefficients of the two points, about zero or about the base."""
        if has_base:
            return about_base(arc_mixture(gram.about_reference(), self.t, EQUAL_TO_BASE))
        return arc_mixture(gram, self.t)

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        """Returns ``mixture`` of one tensor without torch, where nothing is degenerate."""
        arc = quick_arc(gram.about_reference() if has_base else gram, self.t)
        return near_points.about_base(arc) if arc is not None and has_base else arc

    def _survey_columns(self, elements: int) -> Survey:
        """Takes one Gram matrix per column, as a sum over rows."""
        del elements
        reference, cross, differences, has_base = yield Pass(_column_moments)
        from merge_models.manifolds import Gram

        return self.mixture(Gram(reference, cross, differences), bool(has_base))


def _column_moments(block: Block) -> Moments:
    """Gram data of each column, and whether they are about a base."""
    from merge_models.merge.kernels.mixing import column_gram

    base = block.stored_base
    gram = column_gram(block.stored, block.stored[0] if base is None else base)
    return gram.reference, gram.cross, gram.differences, torch.tensor(int(base is not None))
