"""A diagnostic: one object that says what a number is, how it is computed, and how a report shows it.

Fields of the records (``evals/schema``), the JSON Schema, the reference in ``docs/report.md``, rows and
columns of reports, charts and their colours are derived from it. So a new diagnostic is a file beside the
others, an import and an entry in ``registry.py``, and a row in the table of
``tests/evals/diagnostics/cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from merge_models.evals.diagnostics.drawing import Drawing

Depth = Literal["weights", "activations", "tasks"]
"""How deep one must look, cheap to dear: into the files, at a pass of text, at answers."""

Place = Literal["tensor", "layer", "model", "statistics", "site", "head", "divergence", "sentence", "text"]
"""Which record a field belongs to: ``TensorWeights``, ``DepthWeights``, ``WeightDiagnosis``,
``SiteStatistics``, ``SiteActivations``, ``Head``, ``Divergence``, ``SentenceDrift``, ``Generation``."""

Need = Literal["merge", "base", "parents", "every parent", "matrix", "finite", "labels"]
"""What must be there: a merge; a base; parents to compare with; all of them, not those alone that a layer
came from; a tensor of two dimensions; values without NaN and Inf; the tokens that followed."""

Unit = Literal["ratio", "share", "count", "dimensions", "nats", "radians", "cosine", "1", ""]
"""``ratio``: to the parents' mean, 1 is as they are; ``share``: from 0 to 1; ``1``: a number without a
unit."""

REQUIRED: Any = ...
"""The default of a field that every report holds."""


@dataclass(frozen=True)
class Field:
    """One value of a diagnostic in a record.

    Attributes:
        key: its name in ``report.json``.
        text: what the reference says of it.
        places: the records that hold it.
        type: as pydantic takes it; ``default``: where it is not defined.
    """

    key: str
    text: str
    places: tuple[Place, ...]
    type: Any = float | None
    default: Any = None


@dataclass(frozen=True)
class Diagnostic:
    """A quantity that is measured.

    Attributes:
        key: name of the field that reports show.
        label: a few words for columns and titles, without the unit.
        definition: what it is and how it is read, in a sentence or two, with the source of the formula.
        unit: what it is counted in.
        depth: what it is measured on.
        fields: all that it writes into records.
        measure: the formula. It takes what its place offers (a ``WeightCase``, a ``SiteCase``, …) and returns
            its fields' values by key, or for ``head``, ``divergence``, ``sentence`` and ``text`` one number
            for each token, sentence or continuation, of which the mean is told.
        needs: what must be there; without it the fields keep their defaults.
        drawing: how it is drawn; None for what stands in tables alone.
        first: whether it is shown before the others of its depth.
        card: whether the section for a model card shows it; the page shows all.
    """

    key: str
    label: str
    definition: str
    unit: Unit
    depth: Depth
    fields: tuple[Field, ...]
    measure: Callable[..., Any]
    needs: frozenset[Need] = field(default_factory=frozenset)
    drawing: Drawing | None = None
    first: bool = False
    card: bool = True

    @property
    def heading(self) -> str:
        """Returns the label with the unit, as a table's column has it."""
        return f"{self.label}, {self.unit}" if self.unit in ("nats", "radians") else self.label

    def at(self, place: Place) -> tuple[Field, ...]:
        """Returns the fields that one record holds."""
        return tuple(one for one in self.fields if place in one.places)

    def values(self, place: Place, case: Any) -> Mapping[str, Any]:
        """Returns the fields of one place, measured on ``case``; nothing where the case lacks what is
        needed."""
        wanted = self.at(place)
        if not wanted or not self.needs <= case.has:
            return {}
        measured: Mapping[str, Any] = self.measure(case)
        return {one.key: measured[one.key] for one in wanted if one.key in measured}
