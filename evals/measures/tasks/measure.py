"""The measure of tasks: what the models can do, and what they write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from merge_models.evals.measures.measure import Subject
from merge_models.evals.measures.tasks.settings import TaskSettings
from merge_models.evals.schema import ModelRef

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Tasks:
    """Perplexity, answers to questions, signs of degenerate text: decides, by skill.

    Attributes:
        settings: what is scored; by default degenerate text, and perplexity where activations are not
            measured.

    >>> Tasks(TaskSettings(continuations=8)).settings.continuations
    8
    """

    settings: TaskSettings | None = None
    name: ClassVar[str] = "tasks"
    runs_models: ClassVar[bool] = True

    def begin(self, subject: Subject) -> TaskMeasurement:
        """Returns the measure at work; files of questions are read here.

        Raises:
            MergeError: a file is bad, two tasks share a name, or the harness is not installed.
        """
        # Loss by domain comes with the activations: perplexity through a window would cost as much again.
        with_activations = "activations" in subject.measured
        usual = TaskSettings(perplexity_tokens=0) if with_activations else TaskSettings()
        return TaskMeasurement(subject, self.settings or usual)


class TaskMeasurement:
    """Scores of one merge and its relatives."""

    def __init__(self, subject: Subject, settings: TaskSettings) -> None:
        from merge_models.evals.measures.tasks.probe import TaskProbe

        self._subject = subject
        self._probe = TaskProbe(subject.text, settings, seed=subject.running.seed)

    def observe(self, ref: ModelRef, model: nn.Module, tokenizer: Any | None) -> None:
        """Scores one model."""
        self._probe.observe(ref, model, tokenizer)

    def finish(self) -> Mapping[str, Any]:
        """Returns the scores, and what the merge recovered of the best parent's."""
        parents = [ref for ref in self._subject.models if ref.role == "parent"]
        base = next((ref for ref in self._subject.models if ref.role == "base"), None)
        return {"tasks": self._probe.finish(parents, base)}
