"""What all records have in common: numbers with their intervals, models with their roles."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1

Role = Literal["merge", "parent", "base"]
Site = Literal["embedding", "residual", "attention", "mlp", "module"]
Status = Literal["healthy", "degraded", "collapsed"]
Outcome = Literal["healthy", "degraded", "collapsed", "not judged"]
Basis = Literal["weights", "activations", "activations and tasks"]


class Record(BaseModel):
    """A frozen record; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A measured number with its 95 % bootstrap interval, where one was drawn."""

    value: float
    low: float | None = None
    high: float | None = None


class ModelRef(Record):
    """A model of the evaluation.

    Attributes:
        name: its short name, unique in the report; tables and charts use it.
        role: merge, parent or base.
        weight: its share among the parents' weighted mean (parents only; they sum to 1).
        parameters: how many numbers its tensors hold.
    """

    name: str
    role: Role
    weight: float | None = None
    parameters: int | None = None
