"""Stochastic: each tensor, row or block from one parent, drawn by weight; the crossover of genetic search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge_models.merge.errors import RecipeError
from merge_models.merge.kernels.task_vectors import checksum
from merge_models.merge.kernels.terms import Key
from merge_models.merge.kernels.torch_task_vectors import mixed_words
from merge_models.merge.strategies.base import (
    AbstractStrategy,
    Block,
    Grain,
    Moments,
    Pass,
    Survey,
    TensorSpec,
)
from merge_models.merge.strategies.keyed_random import identity_keys, parent_keys
from merge_models.merge.strategies.parameters import parameter


@dataclass(frozen=True)
class Stochastic(AbstractStrategy):
    """Takes each tensor, row or block as it is in one parent, drawn with probability proportional to weight.

    Kernel: draws, the crossover of genetic search over models; another ``seed`` is another child. Carrier:
    any: nothing is averaged. Draws follow the seed, the tensor's name, the parents' contents and the place,
    not the order of models: the parent with the least ``-log(u_i) / w_i`` of keyed uniform ``u_i`` is taken.
    A block is a run of 2^18 elements.
    """

    name: ClassVar[str] = "stochastic"
    carrier: ClassVar[str] = "any"

    weight: float | tuple[float, ...] = parameter(1.0, "share of each model", per_model=True, minimum=0)
    per: str = parameter("tensor", "what is drawn as a whole", choices=("tensor", "row", "block"))

    def validate(self, count: int) -> None:
        del count
        if not any(self._weights):
            raise RecipeError("weights are all zero: no model can be drawn; give one a positive weight")

    @property
    def grain(self) -> Grain:
        return Grain.ROW if self.per == "row" else Grain.ELEMENT

    def survey(self, spec: TensorSpec) -> Survey | None:
        return self._drawn_tensor(spec) if self.per == "tensor" else None

    def combine(self, block: Block, survey: int | None) -> Tensor:
        if survey is not None:
            return block.stored[survey]
        keys = parent_keys(block, self._own)
        if self.per == "block":
            return block.stored[int(self._drawn(keys, 1))]
        drawn = self._drawn(keys, len(block.stored[0]))
        merged = block.parents[0]
        for number, parent in enumerate(block.parents[1:], 1):
            rows = drawn == number
            merged[rows] = parent[rows].to(merged.dtype)
        return merged

    @property
    def _weights(self) -> tuple[float, ...]:
        assert isinstance(self.weight, tuple)
        return self.weight

    @property
    def _own(self) -> list[tuple[float, ...]]:
        return [(weight,) for weight in self._weights]

    def _drawn_tensor(self, spec: TensorSpec) -> Survey:
        (sums,) = yield Pass(_checksums)
        keys = identity_keys(spec, 0, [(a, b) for a, b in sums.tolist()], self._own)
        return int(self._drawn(keys, 1))

    def _drawn(self, keys: Sequence[Key], count: int) -> Tensor:
        """Parents drawn, int64 ``[count]``: a race of exponential clocks, one for each parent."""
        clocks = torch.full((len(keys), count), torch.inf, dtype=torch.float64)
        for clock, key, weight in zip(clocks, keys, self._weights, strict=True):
            if weight > 0:
                uniform = (mixed_words(count, key).double() + (2.0**31 + 0.5)) * 2.0**-32
                clock.copy_(uniform.log_().div_(-weight))
        return clocks.argmin(0)


def _checksums(block: Block) -> Moments:
    """int64 ``[N, 2]`` sums, which wrap around, of what each parent holds."""
    place = 2 * block.number + 1
    sums = [[a, b * place] for a, b in map(checksum, block.spans)]
    return (torch.tensor([[_wrapped(word) for word in pair] for pair in sums], dtype=torch.int64),)


def _wrapped(word: int) -> int:
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)
