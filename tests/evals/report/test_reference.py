"""The documented schema is the schema."""

from __future__ import annotations

import json

from merge_models.evals.report.reference import reference
from merge_models.evals.schema import Evaluation
from tests.evals.report.cases import CASES
from tests.evals.report.reading import over_cases
from tests.helpers import ROOT

DOCS = ROOT / "docs"


def test_the_documented_schema_is_the_schema() -> None:
    """``python -m merge_models.evals.report.reference docs`` writes both again."""
    assert json.loads((DOCS / "report.schema.json").read_text()) == Evaluation.model_json_schema()
    assert (DOCS / "report.md").read_text() == reference()


@over_cases
def test_reports_come_back_from_json(case: str) -> None:
    made = CASES[case]()
    assert Evaluation.from_json(made.to_json()) == made
