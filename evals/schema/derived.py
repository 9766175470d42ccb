"""Records whose fields are those of the diagnostics: what is registered is in the report, its schema and its
reference."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from merge_models.evals.diagnostics.diagnostic import Place
from merge_models.evals.diagnostics.record import Record
from merge_models.evals.diagnostics.registry import at


def with_diagnostics(place: Place, base: type[Record] = Record) -> Any:
    """Returns a record with the fields of ``base`` and then those of all diagnostics of one place.

    It is for type checkers of any type: a field that is registered needs no other declaration.

    Args:
        place: which record.
        base: what identifies it (names, layers).
    """
    fields: dict[str, Any] = {
        field.key: (field.type, Field(default=field.default, description=field.text))
        for diagnostic in at(place)
        for field in diagnostic.at(place)
    }
    return create_model(f"{base.__name__} with diagnostics", __base__=base, **fields)
