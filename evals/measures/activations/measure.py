"""The measure of activations and predictions: one pass of the text through every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from merge_models.evals.measures.measure import Subject
from merge_models.evals.schema import ModelRef

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Activations:
    """Variance, rank and likeness by layer, and the distance of the predictions: decides.

    Attributes:
        information: whether O-information is taken of the same tokens.

    >>> Activations(information=False).name
    'activations'
    """

    information: bool = True
    name: ClassVar[str] = "activations"
    runs_models: ClassVar[bool] = True

    def begin(self, subject: Subject) -> ActivationMeasurement:
        """Returns the measure at work.

        Raises:
            MergeError: sequences of the text are too short.
        """
        return ActivationMeasurement(subject, self.information)


class ActivationMeasurement:
    """Activations of one merge and its relatives."""

    def __init__(self, subject: Subject, information: bool) -> None:
        from merge_models.evals.measures.activations.probe import ActivationProbe

        assert subject.text is not None, "models run on text"
        self._subject, self._information = subject, information
        self._probe = ActivationProbe(subject.text, weights=subject.family.weights, seed=subject.running.seed)

    def observe(self, ref: ModelRef, model: nn.Module, tokenizer: Any | None) -> None:
        """Runs the text through one model."""
        self._probe.observe(ref, model, tokenizer)

    def finish(self) -> Mapping[str, Any]:
        """Returns the diagnosis of the activations, and that of the information in them where it is
        wanted."""
        measured: dict[str, Any] = {"activations": self._probe.finish()}
        if self._information:
            from merge_models.evals.measures.information import diagnose_information

            self._subject.running.progress("information")
            samples, weights = self._probe.samples(), self._subject.family.weights
            measured["information"] = diagnose_information(samples, weights)
        return measured
