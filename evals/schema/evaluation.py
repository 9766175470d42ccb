"""Everything measured of one merge."""

from __future__ import annotations

from merge_models.evals.diagnostics.record import SCHEMA_VERSION, ModelRef, Record
from merge_models.evals.schema.activations import ActivationDiagnosis
from merge_models.evals.schema.information import InformationDiagnosis
from merge_models.evals.schema.repair import RepairReport
from merge_models.evals.schema.tasks import TaskDiagnosis
from merge_models.evals.schema.verdict import Verdict
from merge_models.evals.schema.weights import WeightDiagnosis


class Evaluation(Record):
    """Everything measured of one merge; ``report.json`` is this record.

    Attributes:
        models: the merge first, then parents, then the base.
        verdict: what it all says; None when only parts were asked for.
        versions: of merge-models, torch and transformers.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    versions: dict[str, str] = {}
    models: tuple[ModelRef, ...]
    verdict: Verdict | None = None
    weights: WeightDiagnosis | None = None
    activations: ActivationDiagnosis | None = None
    information: InformationDiagnosis | None = None
    tasks: TaskDiagnosis | None = None
    repair: RepairReport | None = None
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @property
    def merge(self) -> ModelRef:
        """The merged model."""
        return next(model for model in self.models if model.role == "merge")

    @property
    def parents(self) -> tuple[ModelRef, ...]:
        """The parents, in the order of every per-parent tuple."""
        return tuple(model for model in self.models if model.role == "parent")

    @property
    def base(self) -> ModelRef | None:
        """The base, where there is one."""
        return next((model for model in self.models if model.role == "base"), None)

    def to_json(self) -> str:
        """Returns the record as JSON, fields in a fixed order; ``Evaluation.from_json`` reads it back."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Reads ``to_json``'s text; raises ``pydantic.ValidationError`` for anything else."""
        return cls.model_validate_json(text)
