"""NuSLERP: SLERP by weights, of tensors, rows or columns, of models or of their task vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.lazy import LazyModule
from merge_models.merge.strategies import near_points
from merge_models.merge.strategies.base import (
    AbstractSpanStrategy,
    BaseModel,
    Block,
    FixedMixture,
    Mixture,
    Moments,
    Pass,
    Survey,
    TensorSpec,
)
from merge_models.merge.strategies.near_points import NearGram
from merge_models.merge.strategies.parameters import parameter
from merge_models.merge.strategies.spherical import EQUAL_TO_BASE, about_base, arc_mixture, quick_arc

if TYPE_CHECKING:
    import torch

    from merge_models.manifolds import Gram
else:
    torch = LazyModule("torch")


@dataclass(frozen=True)
class NuSlerp(AbstractSpanStrategy):
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

    def mixture(self, gram: Gram | None) -> Mixture:
        assert gram is not None
        return arc_mixture(gram, self.t)

    def mixture_with_base(self, gram: Gram | None) -> Mixture:
        assert gram is not None
        return about_base(arc_mixture(gram.about_reference(), self.t, EQUAL_TO_BASE))

    def quick(self, gram: NearGram, has_base: bool) -> FixedMixture | None:
        found = quick_arc(gram.about_reference() if has_base else gram, self.t)
        return near_points.about_base(found) if found is not None and has_base else found

    def survey(self, spec: TensorSpec) -> Survey | None:
        """One Gram matrix per column, as a sum over rows."""
        by_column = self.per == "column" and len(spec.shape) >= 2
        return self._column_survey() if by_column else None

    def _column_survey(self) -> Survey:
        reference, cross, differences, has_base = yield Pass(_column_moments)
        from merge_models.manifolds import Gram

        gram = Gram(reference, cross, differences)
        return self.mixture_with_base(gram) if bool(has_base) else self.mixture(gram)


def _column_moments(block: Block) -> Moments:
    """Gram data of each column, and whether they are about a base."""
    from merge_models.merge.kernels.mixing import column_gram

    base = block.stored_base
    gram = column_gram(block.stored, block.stored[0] if base is None else base)
    return gram.reference, gram.cross, gram.differences, torch.tensor(int(base is not None))
