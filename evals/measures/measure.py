"""What an evaluation measures: one object a depth, each with its settings.

``evaluate`` begins every measure, finishes those that read files alone, shows all models to the others, one
in memory at a time, and finishes these. So a new measure is an object like them: nothing else asks which it
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from merge_models.evals.inputs.lineage import Lineage
from merge_models.evals.inputs.settings import Running
from merge_models.evals.schema import ModelRef

if TYPE_CHECKING:
    from torch import nn

    from merge_models.evals.inputs.calibration import Batches


@dataclass(frozen=True)
class Subject:
    """The merge that is measured, and what all measures of it share.

    Attributes:
        family: the merge, its parents and their base: where they are.
        models: the same as reports call them: the merge, the parents, the base.
        text: what models are run on, cut into sequences; None where none is run.
        running: how.
        measured: names of all measures that were asked for.
    """

    family: Lineage
    models: tuple[ModelRef, ...]
    text: Batches | None
    running: Running
    measured: frozenset[str]


class Measurement(Protocol):
    """A measure at work: it keeps what it needs of a model, never the model."""

    def observe(self, ref: ModelRef, model: nn.Module, tokenizer: Any | None) -> None:
        """Looks at one model, which is in eval mode and is left as it was: no hooks, no gradients."""
        ...

    def finish(self) -> Mapping[str, Any]:
        """Returns what was measured, by the names of the evaluation's fields."""
        ...


class Measure(Protocol):
    """Something that can be measured of a merge.

    Attributes:
        name: the field of the evaluation that it fills.
        runs_models: whether models must run for it; else it reads their files.
    """

    name: ClassVar[str]
    runs_models: ClassVar[bool]

    def begin(self, subject: Subject) -> Measurement:
        """Returns the measure at work; what is wrong with its settings is told here, before anything slow.

        Raises:
            MergeError: files of its settings cannot be read, or do not fit the text.
        """
        ...
