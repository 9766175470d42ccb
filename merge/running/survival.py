"""How much of what a merge changes survives rounding to the output's format.

A fine-tune changes weights by less than the step of a 16-bit format, and rounding to nearest then takes many
changes back. Measured, on a sample, against the base, or the first parent where there is none:

- ``delta_kept``: ``<round(m) - round(b), m - b> / |m - b|^2``, the share of the change that is still there;
- ``delta_lost``: the share of changed elements that are the reference's again;
- ``rounding_error``: ``|round(m) - m| / |m - b|``;
- ``delta_norm``: ``|m - b|`` of the sample, scaled up to the tensor; it weighs tensors against each other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from merge_models.merge.contract.kernel import Figures

SAMPLED = 1 << 16
"""Elements that are looked at in a block that is looked at."""

EVERY = 32
"""One in so many blocks is looked at, each tensor's first among them."""


class Survival:
    """Collects samples by tensor, from any thread; what it tells does not depend on their order."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, size: int, sums: np.ndarray) -> None:
        """Takes the sums (see ``kernels.rounding.survival``) of a sample of so many elements."""
        with self._lock:
            self._samples.setdefault(name, []).append((size, sums))

    def figures(self, name: str, count: int) -> Figures:
        """Returns what is told of a tensor of so many elements; nothing where nothing was sampled."""
        with self._lock:
            samples = self._samples.get(name, [])
        size = sum(size for size, _ in samples)
        change, kept, error, changed, lost = (math.fsum(s[i] for _, s in samples) for i in range(5))
        if not change or not changed:
            return {}
        return {
            "delta_kept": kept / change,
            "delta_lost": lost / changed,
            "rounding_error": math.sqrt(error / change),
            "delta_norm": math.sqrt(change * count / size),
        }


@dataclass(frozen=True)
class Rounded:
    """What rounding did to a whole merge, where it was measured.

    Attributes:
        kept: share of the change that survived, tensors weighed by the square of their change.
        lost: share of changed elements that are the reference's again: the mean over tensors.
        error: what rounding added, against the change.
        tensors: how many were measured.
    """

    kept: float
    lost: float
    error: float
    tensors: int

    def __str__(self) -> str:
        return (
            f"rounding kept {self.kept:.1%} of the change and added {self.error:.1%} of it as noise;"
            f" {self.lost:.1%} of changed values fell back (sampled)"
        )


KEYS = ("delta_kept", "delta_lost", "rounding_error", "delta_norm")


def rounded(figures: Mapping[str, Figures]) -> Rounded | None:
    """Returns the whole merge's, from the tensors' figures; None where nothing was rounded to a narrow
    format."""
    measured = [f for f in figures.values() if all(isinstance(f.get(key), float) for key in KEYS)]
    if not measured:
        return None
    norms = [float(f["delta_norm"]) ** 2 for f in measured]
    total = math.fsum(norms)

    def mean(values: Iterable[float]) -> float:
        return math.fsum(value * norm for value, norm in zip(values, norms, strict=True)) / total

    return Rounded(
        mean(float(f["delta_kept"]) for f in measured),
        math.fsum(float(f["delta_lost"]) for f in measured) / len(measured),
        math.sqrt(mean(float(f["rounding_error"]) ** 2 for f in measured)),
        len(measured),
    )
