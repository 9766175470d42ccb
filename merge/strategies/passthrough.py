"""Passthrough: one model's tensors as they are, or scaled; what stacks of layers are made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from merge_models.merge.strategies.base import AbstractSpanStrategy, FixedMixture
from merge_models.merge.strategies.parameters import parameter

if TYPE_CHECKING:
    from merge_models.manifolds.span import Gram


@dataclass(frozen=True)
class Passthrough(AbstractSpanStrategy):
    """Takes one model's tensors as they are, times ``scale`` where one is given.

    Kernel: copy. Carrier: flat space. Frankenmerges are made with it: layers of several models stacked in
    slices, each from one model.
    """

    name: ClassVar[str] = "passthrough"
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    scale: float | None | tuple[float | None, ...] = parameter(
        None, "factor of the tensors; none leaves them as they are", kind=float, per_model=True
    )

    @property
    def needs_gram(self) -> bool:
        return False

    def mixture(self, gram: Gram | None) -> FixedMixture:
        del gram
        assert isinstance(self.scale, tuple)
        (scale,) = self.scale
        return FixedMixture((1.0 if scale is None else scale,))
