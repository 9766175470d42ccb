"""DELLA: drop elements of task vectors at random, the small ones of a row more often than the large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Grain, Kernel, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.errors import RecipeError
from merge_models.merge.kernels.terms import Ranked, Thinned
from merge_models.merge.strategies.families.keyed_random import parent_keys
from merge_models.merge.strategies.families.task_vectors import (
    AbstractTaskVectors,
    Terms,
    added_norms,
    ratios,
    term_kernel,
)


@dataclass(frozen=True)
class AbstractDella(AbstractTaskVectors):
    """Within a row, the probability of keeping rises with the rank of the element's size.

    It goes linearly from ``density - epsilon`` for the smallest to ``density + epsilon`` for the largest;
    equal elements have equal probabilities; a row of one element has ``density``.
    """

    density: float | tuple[float, ...] = parameter(
        1.0, "mean probability of keeping an element", per_model=True, minimum=0, maximum=1
    )
    epsilon: float | tuple[float, ...] = parameter(
        0.15, "the largest of a row is kept with density + epsilon, the smallest with density - epsilon",
        per_model=True, minimum=0, below=0.5,
    )  # fmt: skip
    rescale: str = parameter(
        "density", "how what is kept is scaled up: by 1/probability (the paper's), or to the old L1 norm",
        choices=("density", "l1", "none"), flags=("none", "density"),
    )  # fmt: skip

    def validate(self, count: int) -> None:
        AbstractTaskVectors.validate(self, count)
        for density, epsilon in self._shares:
            if 0 < density < 1 and not (epsilon < density and density + epsilon < 1):
                raise RecipeError(
                    f"density {density:g} and epsilon {epsilon:g} give probabilities from"
                    f" {density - epsilon:g} to {density + epsilon:g}; both must be between 0 and 1"
                )

    def kernel(self, case: Case) -> Kernel:
        rescales = self.rescale == "l1" and any(density < 1 for density, _ in self._shares)
        return term_kernel(case, self._terms, grain=Grain.ROW, survey=self._survey if rescales else None)

    def _terms(self, block: Block, survey: Sequence[float] | None) -> Terms:
        factors = survey or (1.0,) * len(self._shares)
        return self._thinned(block, factors, inverse=self.rescale == "density"), self.mixing

    @property
    def _shares(self) -> list[tuple[float, float]]:
        assert isinstance(self.density, tuple) and isinstance(self.epsilon, tuple)
        return list(zip(self.density, self.epsilon, strict=True))

    def _survey(self, elements: int) -> Survey:
        del elements
        (norms,) = yield Pass(added_norms, (self._thinned, ((1.0,) * len(self._shares), False)))
        return ratios(norms)

    def _thinned(self, block: Block, factors: Sequence[float], inverse: bool) -> list[Thinned]:
        if all(density >= 1 for density, _ in self._shares):
            return [Thinned(factor=factor) for factor in factors]
        assert block.columns is not None
        own = [(*shares, weight) for shares, weight in zip(self._shares, self.weights, strict=True)]
        parents = zip(parent_keys(block, own), self._shares, factors, strict=True)
        thinned = []
        for key, (density, epsilon), factor in parents:
            by_rank = Ranked(key, block.columns, density - epsilon, density + epsilon, inverse)
            thinned.append(Thinned(draw=by_rank if 0 < density < 1 else (key, density), factor=factor))
        return thinned


@dataclass(frozen=True)
class Della(AbstractDella):
    """Drops elements at random, those small in their row more often, and averages those of each elected sign.

    Kernel: ranked random masks, sign election. Carrier: flat space about the base, row by row. Source: Deep
    et al. 2024, "DELLA-merging" (2406.11617), whose epsilon is the whole width of the range of probabilities
    where here, as in mergekit, it is half of it. What is kept is divided by its own probability, as in the
    paper (``rescale: density``, and ``true`` in recipes); mergekit, where it says ``true``, restores each
    tensor's L1 norm (``rescale: l1``). A row is all elements with one first index; mergekit ranks along
    the second index in tensors of three and more dimensions.
    """

    name: ClassVar[str] = "della"
    source: ClassVar[str] = "Deep et al. 2024, arXiv:2406.11617"
    elects: ClassVar[bool] = True

    normalize: bool = parameter(True, "divide the sum by the weights of the parents in it")


@dataclass(frozen=True)
class DellaLinear(AbstractDella):
    """Drops elements at random, those small in their row more often, and adds the weighted sum to the base.

    Kernel: ranked random masks. Carrier: flat space about the base, row by row. Source: Deep et al. 2024,
    "DELLA-merging" (2406.11617), without the election of signs. Else as ``della``.
    """

    name: ClassVar[str] = "della_linear"
    source: ClassVar[str] = "Deep et al. 2024, arXiv:2406.11617"
    elects: ClassVar[bool] = False
