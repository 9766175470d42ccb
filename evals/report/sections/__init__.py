"""The sections of the page, each from one part of an evaluation; a part that is missing gives none."""

from __future__ import annotations

from collections.abc import Callable

from merge_models.evals.report.sections.figures import Section as Section
from merge_models.evals.report.sections.figures import figure as figure
from merge_models.evals.report.sections.models import activations, predictions, sentences
from merge_models.evals.report.sections.oinformation import information
from merge_models.evals.report.sections.opening import badge as badge
from merge_models.evals.report.sections.opening import decision as decision
from merge_models.evals.report.sections.opening import location as location
from merge_models.evals.report.sections.opening import verdict as verdict
from merge_models.evals.report.sections.provenance import method
from merge_models.evals.report.sections.repaired import repair
from merge_models.evals.report.sections.scores import generation, tasks
from merge_models.evals.report.sections.scores import score_rows as score_rows
from merge_models.evals.report.sections.tensors import weights
from merge_models.evals.schema import Evaluation


def sections(evaluation: Evaluation) -> list[Section]:
    """Returns everything that the evaluation holds, after the verdict."""
    makers: tuple[Callable[[Evaluation], Section | None], ...] = (
        activations,
        predictions,
        sentences,
        tasks,
        generation,
        weights,
        information,
        repair,
        method,
    )
    return [section for make in makers if (section := make(evaluation)) is not None]
