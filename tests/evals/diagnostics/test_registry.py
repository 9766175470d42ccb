"""Every diagnostic: a known answer, a file, and a place in all that is derived from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Place
from merge_models.evals.diagnostics.drawing import COUNT, RATIO, SHARE, HeatMap, Scale
from merge_models.evals.diagnostics.registry import DIAGNOSTICS, at, shown
from merge_models.evals.report.reference import reference
from merge_models.evals.schema import (
    DepthWeights,
    Divergence,
    Evaluation,
    Generation,
    Head,
    SentenceDrift,
    SiteActivations,
    SiteStatistics,
    TensorWeights,
    WeightDiagnosis,
)
from tests.evals.diagnostics.cases import KNOWN, Known

EVALS = Path(__file__).parents[3] / "evals"
RECORDS: dict[Place, Any] = {
    "tensor": TensorWeights,
    "layer": DepthWeights,
    "model": WeightDiagnosis,
    "statistics": SiteStatistics,
    "site": SiteActivations,
    "head": Head,
    "divergence": Divergence,
    "sentence": SentenceDrift,
    "text": Generation,
}


def place_of(diagnostic: Diagnostic) -> Place:
    """Where the field that reports show is."""
    return next(place for place in RECORDS if any(f.key == diagnostic.key for f in diagnostic.at(place)))


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known.place} {known.key}")
def test_a_diagnostic_says_what_is_known(known: Known) -> None:
    (diagnostic,) = (one for one in at(known.place) if one.key == known.key)
    measured = known.measured(diagnostic)
    flat = isinstance(known.answer, tuple) and isinstance(known.answer[0], tuple)
    for got, wanted in zip(measured, known.answer, strict=True) if flat else [(measured, known.answer)]:
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_every_diagnostic_has_a_row() -> None:
    rows = [(known.place, known.key) for known in KNOWN]
    assert rows == [(place_of(diagnostic), diagnostic.key) for diagnostic in DIAGNOSTICS]


@pytest.mark.parametrize("place", RECORDS)
def test_records_schema_and_reference_hold_every_field(place: Place) -> None:
    record, told = RECORDS[place], reference()
    section = told.split(f"\n## {record.__name__}\n")[1].split("\n## ")[0]
    properties = Evaluation.model_json_schema()["$defs"][record.__name__]["properties"]
    for diagnostic in at(place):
        for field in diagnostic.at(place):
            assert record.model_fields[field.key].description == field.text
            assert properties[field.key]["description"] == field.text
            assert f"- `{field.key}`: " in section and f"| `{field.key}` |" in section
        assert f"| {diagnostic.label} | `{diagnostic.key}` | {diagnostic.depth} |" in told


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS, ids=lambda one: f"{place_of(one)} {one.key}")
def test_a_diagnostic_says_what_it_is(diagnostic: Diagnostic) -> None:
    assert diagnostic.definition.endswith(".") and len(diagnostic.label) <= 40
    assert all(field.text.endswith(".") and field.places for field in diagnostic.fields)
    assert {place for field in diagnostic.fields for place in field.places} <= set(RECORDS)


def test_what_comes_first_is_shown_first_and_nothing_is_lost() -> None:
    for place in RECORDS:
        flags = [diagnostic.first for diagnostic in shown(place)]
        assert flags == sorted(flags, reverse=True)
        assert set(map(id, shown(place))) == set(map(id, at(place)))


@pytest.mark.parametrize("scale", [RATIO, SHARE, COUNT.up_to(3)], ids=lambda scale: scale.name)
def test_every_colour_of_a_scale_is_one_of_the_page(scale: Scale) -> None:
    css = (EVALS / "report" / "assets" / "report.css").read_text(encoding="utf-8")
    assert len(scale.colours) == len(scale.steps) + 1 and list(scale.steps) == sorted(scale.steps)
    for colour in scale.colours:
        assert re.search(rf"--{colour}: light-dark\(", css), "a colour for light pages, and one for dark ones"


def test_every_heat_map_is_of_a_field_of_tensors() -> None:
    for diagnostic in DIAGNOSTICS:
        if isinstance(diagnostic.drawing, HeatMap):
            assert place_of(diagnostic) == "tensor"


def test_a_file_holds_one_diagnostic_or_a_close_family() -> None:
    """Nothing but the registry and tests names an object: all else finds it there."""
    names = {
        name
        for file in (EVALS / "diagnostics").rglob("*.py")
        for name in re.findall(r"^([A-Z][A-Z0-9_]+) = Diagnostic\(", file.read_text(encoding="utf-8"), re.M)
    }
    assert len(names) >= 35
    for file in EVALS.rglob("*.py"):
        if file.parent.name == "diagnostics" and file.name == "registry.py":
            continue
        imported = re.findall(
            r"^from merge_models\.evals\.diagnostics\.\w+\.\w+ import (.*)$", file.read_text(), re.M
        )
        taken = {name.strip() for line in imported for name in line.split(",")}
        assert not taken & names, f"{file.name} imports {taken & names}"
