"""The measure of weights: files alone, no forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from merge_models.evals.measures.measure import Subject


@dataclass(frozen=True)
class Weights:
    """Norms, spectra, signs and shares of every tensor against its parents': screens, in seconds.

    >>> Weights().runs_models
    False
    """

    name: ClassVar[str] = "weights"
    runs_models: ClassVar[bool] = False

    def begin(self, subject: Subject) -> WeightMeasurement:
        """Returns the measure at work."""
        return WeightMeasurement(subject)


class WeightMeasurement:
    """Weights of one merge, read when it is finished."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def observe(self, ref: Any, model: Any, tokenizer: Any) -> None:
        """Looks at nothing: it reads files."""

    def finish(self) -> Mapping[str, Any]:
        """Returns the diagnosis of the weights.

        Raises:
            MergeError: a model cannot be read or is of another architecture.
        """
        from merge_models.evals.measures.weights.diagnose import diagnose_weights

        family, running = self._subject.family, self._subject.running
        running.progress("weights")
        diagnosis = diagnose_weights(
            family.merged,
            family.parents,
            family.base,
            weights=family.weights,
            origins=family.origins,
            threads=running.threads,
            allow_pickle=running.allow_pickle,
        )
        return {"weights": diagnosis}
