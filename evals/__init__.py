"""Did the merge collapse, where, and what to do: diagnostics, verdict, report, repair."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merge_models.evals.evaluation import evaluate as evaluate
    from merge_models.evals.inputs.settings import Merged as Merged
    from merge_models.evals.inputs.settings import Running as Running
    from merge_models.evals.inputs.settings import TextSample as TextSample
    from merge_models.evals.inspect import inspect_parents as inspect_parents
    from merge_models.evals.measures.activations.measure import Activations as Activations
    from merge_models.evals.measures.activations.modules import diagnose_modules as diagnose_modules
    from merge_models.evals.measures.information import o_information as o_information
    from merge_models.evals.measures.tasks.measure import Tasks as Tasks
    from merge_models.evals.measures.tasks.settings import TaskSettings as TaskSettings
    from merge_models.evals.measures.weights.diagnose import diagnose_weights as diagnose_weights
    from merge_models.evals.measures.weights.measure import Weights as Weights
    from merge_models.evals.repairs.run import repair as repair
    from merge_models.evals.repairs.run import repair_module as repair_module
    from merge_models.evals.report import to_html as to_html
    from merge_models.evals.report import to_markdown as to_markdown

_HOMES = {
    "Activations": "merge_models.evals.measures.activations.measure",
    "Merged": "merge_models.evals.inputs.settings",
    "Running": "merge_models.evals.inputs.settings",
    "TaskSettings": "merge_models.evals.measures.tasks.settings",
    "Tasks": "merge_models.evals.measures.tasks.measure",
    "TextSample": "merge_models.evals.inputs.settings",
    "Weights": "merge_models.evals.measures.weights.measure",
    "diagnose_modules": "merge_models.evals.measures.activations.modules",
    "diagnose_weights": "merge_models.evals.measures.weights.diagnose",
    "evaluate": "merge_models.evals.evaluation",
    "inspect_parents": "merge_models.evals.inspect",
    "o_information": "merge_models.evals.measures.information",
    "repair": "merge_models.evals.repairs.run",
    "repair_module": "merge_models.evals.repairs.run",
    "to_html": "merge_models.evals.report",
    "to_markdown": "merge_models.evals.report",
}
__all__ = [
    "Activations",
    "Merged",
    "Running",
    "TaskSettings",
    "Tasks",
    "TextSample",
    "Weights",
    "diagnose_modules",
    "diagnose_weights",
    "evaluate",
    "inspect_parents",
    "o_information",
    "repair",
    "repair_module",
    "to_html",
    "to_markdown",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when they are first used: importing this package loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
