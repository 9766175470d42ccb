"""DARE: drop elements of task vectors at random and scale up the rest; then sum them, or elect signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Kernel, Pass, Survey
from merge_models.merge.contract.parameters import parameter
from merge_models.merge.kernels.terms import Key, Thinned
from merge_models.merge.strategies.families.keyed_random import parent_keys
from merge_models.merge.strategies.families.task_vectors import (
    AbstractTaskVectors,
    Terms,
    added_norms,
    ratios,
    term_kernel,
)


@dataclass(frozen=True)
class AbstractDare(AbstractTaskVectors):
    """Random dropping, keyed by the seed, the tensor's name, the parent's content and the place."""

    density: float | tuple[float, ...] = parameter(
        1.0, "probability of keeping an element", per_model=True, minimum=0, maximum=1
    )
    rescale: str = parameter(
        "density", "how what is kept is scaled up: by 1/density (the paper's), or to the old L1 norm",
        choices=("density", "l1", "none"), flags=("none", "density"),
    )  # fmt: skip

    def kernel(self, case: Case) -> Kernel:
        rescales = self.rescale == "l1" and any(density < 1 for density in self._densities)
        return term_kernel(case, self._terms, survey=self._survey if rescales else None)

    def _terms(self, block: Block, survey: Sequence[float] | None) -> Terms:
        factors = survey or [1 / d if self.rescale == "density" and d > 0 else 1.0 for d in self._densities]
        return self._thinned(block, factors), self.mixing

    @property
    def _densities(self) -> tuple[float, ...]:
        assert isinstance(self.density, tuple)
        return self.density

    def _survey(self, elements: int) -> Survey:
        del elements
        (norms,) = yield Pass(added_norms, (self._thinned, ((1.0,) * len(self._densities),)))
        return ratios(norms)

    def _keys(self, block: Block) -> list[Key]:
        if all(density >= 1 for density in self._densities):
            return [(0, 0, 0)] * len(block.spans)
        return parent_keys(block, list(zip(self._densities, self.weights, strict=True)))

    def _thinned(self, block: Block, factors: Sequence[float]) -> list[Thinned]:
        draws = zip(self._keys(block), self._densities, factors, strict=True)
        return [Thinned(draw=(key, p), factor=factor) for key, p, factor in draws]


@dataclass(frozen=True)
class DareLinear(AbstractDare):
    """Drops elements of task vectors at random, scales up the rest, and adds their weighted sum to the base.

    Kernel: random masks. Carrier: flat space about the base. Source: Yu et al. 2024, "Language models are
    super Mario" (2311.03099), whose drop rate is 1 - ``density``. Kept elements are multiplied by
    1/``density`` as in the paper (``rescale: density``, and ``true`` in recipes); mergekit, where it says
    ``true``, restores each tensor's L1 norm (``rescale: l1``). Masks follow the seed and the parent's
    content, not the order of models, paths or threads.
    """

    name: ClassVar[str] = "dare_linear"
    source: ClassVar[str] = "Yu et al. 2024, arXiv:2311.03099"
    elects: ClassVar[bool] = False


@dataclass(frozen=True)
class DareTies(AbstractDare):
    """Drops elements of task vectors at random, scales up the rest, and sums those of each elected sign.

    Kernel: random masks, sign election. Carrier: flat space about the base. Source: Yu et al. 2024
    (2311.03099) with the election of Yadav et al. 2023 (2306.01708). As in mergekit the sum is not divided
    by weights unless ``normalize`` says so. ``rescale`` and masks as in ``dare_linear``.
    """

    name: ClassVar[str] = "dare_ties"
    source: ClassVar[str] = "Yu et al. 2024, arXiv:2311.03099"
    elects: ClassVar[bool] = True
