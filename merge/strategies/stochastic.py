"""Stochastic: each tensor, row or block from one parent, drawn by weight; the crossover of genetic search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Grain, Kernel, Mixer, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.contract.span import NOT_FINITE, OVERFLOW, Span
from merge_models.merge.contract.strategy import AbstractStrategy
from merge_models.merge.errors import RecipeError
from merge_models.merge.kernels.blocks import is_finite
from merge_models.merge.kernels.terms import Key
from merge_models.merge.kernels.words import words
from merge_models.merge.strategies.families.blocks import mixing_kernel
from merge_models.merge.strategies.families.drawn import checksums, copy, copy_rows
from merge_models.merge.strategies.families.keyed_random import identity_keys, parent_keys


@dataclass(frozen=True)
class Stochastic(AbstractStrategy):
    """Takes each tensor, row or block as it is in one parent, drawn with probability proportional to weight.

    Kernel: draws, the crossover of genetic search over models; another ``seed`` is another child. Carrier:
    any: nothing is averaged. Draws follow the seed, the tensor's name, the parents' contents and the place,
    not the order of models: the parent with the least ``-log(u_i) / w_i`` of keyed uniform ``u_i`` is taken.
    A block is a run of 2^18 elements.
    """

    name: ClassVar[str] = "stochastic"
    carrier: ClassVar[str] = ""

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    per: str = parameter("tensor", "what is drawn as a whole", choices=("tensor", "row", "block"))

    def validate(self, count: int) -> None:
        del count
        if not any(self._weights):
            raise RecipeError("weights are all zero: no model can be drawn; give one a positive weight")

    def kernel(self, case: Case) -> Kernel:
        return mixing_kernel(
            case,
            self._mixer,
            grain=Grain.ROW if self.per == "row" else Grain.ELEMENT,
            survey=partial(self._draw_tensor, case) if self.per == "tensor" else None,
        )

    def _mixer(self, block: Block, survey: int | None) -> Mixer:
        drawn = np.array([survey]) if survey is not None else self._drawn_parts(block)
        columns = block.columns or block.spans[0].count

        def mix(out: Span) -> int:
            sources = [span.first(out.count) for span in block.spans]
            if len(drawn) == 1:
                copy(sources[drawn[0]], out)
            else:
                copy_rows(sources, drawn, columns, out)
            if all(map(is_finite, sources)):
                return 0 if is_finite(out) else OVERFLOW
            return NOT_FINITE

        return mix

    @property
    def _weights(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return self.weight

    @property
    def _own(self) -> list[tuple[float, ...]]:
        return [(weight,) for weight in self._weights]

    def _draw_tensor(self, case: Case, elements: int) -> Survey:
        del elements
        (sums,) = yield Pass(checksums)
        keys = identity_keys(case, 0, [(a, b) for a, b in sums.tolist()], self._own)
        return int(self._drawn(keys, 1)[0])

    def _drawn_parts(self, block: Block) -> np.ndarray:
        """The parent of each row, or of the block."""
        rows = block.spans[0].count // block.columns if self.per == "row" and block.columns else 1
        return self._drawn(parent_keys(block, self._own), rows)

    def _drawn(self, keys: Sequence[Key], count: int) -> np.ndarray:
        """Parents drawn, int64 ``[count]``: a race of exponential clocks, one for each parent."""
        clocks = np.full((len(keys), count), np.inf)
        for clock, key, weight in zip(clocks, keys, self._weights, strict=True):
            if weight > 0:
                drawn = words(count, key).view(np.int32).astype(np.float64)
                clock[:] = np.log((drawn + (2.0**31 + 0.5)) * 2.0**-32) / -weight
        return clocks.argmin(0)
