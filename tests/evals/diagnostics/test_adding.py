"""A new diagnostic takes three places: its file, the registry, the tests' table; all else follows by
itself."""

from __future__ import annotations

from pathlib import Path

from tests.tree import changed, copied_tree, edit, run, run_tests

NEW_FILE = '''"""The largest entry of a tensor: what a few outliers do to it."""

from __future__ import annotations

from typing import Any

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Field
from merge_models.evals.diagnostics.drawing import RATIO, HeatMap
from merge_models.evals.diagnostics.weights.case import WeightCase, over_parents


def _largest(case: WeightCase) -> dict[str, Any]:
    entries = [float(rows.abs().max()) for rows in case.rows(64)]
    return {"largest_entry_ratio": over_parents(case, entries)}


LARGEST_ENTRY = Diagnostic(
    key="largest_entry_ratio",
    label="Largest entry",
    definition="Largest magnitude in a sample of rows, merge over the parents' mean.",
    unit="ratio",
    depth="weights",
    fields=(Field("largest_entry_ratio", "Largest magnitude over the parents' mean.", ("tensor", "layer")),),
    measure=_largest,
    needs=frozenset({"merge", "matrix"}),
    drawing=HeatMap(RATIO),
)
'''
IMPORT = "from merge_models.evals.diagnostics.weights.largest_entry import LARGEST_ENTRY\n"
ROW = '    Known("tensor", "largest_entry_ratio", weights(2 * FULL, FULL), 2.0),\n'

SHOWS = """
import torch
from merge_models.evals import to_html, to_markdown
from merge_models.evals.measures.weights.diagnose import diagnose_weights
from merge_models.evals.report.reference import reference, schema
from merge_models.evals.schema import Evaluation, ModelRef

state = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(6, 5) for n in range(2)}
merge = {name: 2 * tensor for name, tensor in state.items()}
models = (ModelRef(name="merge", role="merge"), ModelRef(name="parent", role="parent", weight=1.0))
made = Evaluation(created="now", models=models, weights=diagnose_weights(merge, [state]))
assert '"largest_entry_ratio": 2.0' in made.to_json(), "JSON"
assert Evaluation.from_json(made.to_json()) == made
assert "largest_entry_ratio" in schema()["$defs"]["TensorWeights"]["properties"], "schema"
assert "| Largest entry |" in to_markdown(made), "Markdown"
page = to_html(made)
assert 'id="figure-weight_largest_entry_ratio"' in page, "HTML"
assert "Largest magnitude in a sample of rows" in page, "HTML"
assert '"weight_largest_entry_ratio":{"key"' in page and '"colours":["r0"' in page, "the chart"
told = reference()
assert "| Largest entry | `largest_entry_ratio` | weights | ratio | matrix, merge |" in told, "reference"
assert "- `largest_entry_ratio`: Largest magnitude over the parents' mean." in told, "its field"
"""


def test_a_new_diagnostic_takes_three_places_and_is_everywhere(tmp_path: Path) -> None:
    place = copied_tree(tmp_path)
    registry, table = place / "evals/diagnostics/registry.py", place / "tests/evals/diagnostics/cases.py"
    (place / "evals/diagnostics/weights/largest_entry.py").write_text(NEW_FILE, encoding="utf-8")
    edit(registry, "from merge_models.evals.diagnostics.weights.mean_norm import", IMPORT)
    edit(registry, "    # activations of one model at a site\n", "    LARGEST_ENTRY,\n")
    edit(table, '    Known("statistics", "variance",', ROW)
    assert changed(place) == [
        "evals/diagnostics/registry.py",
        "evals/diagnostics/weights/largest_entry.py",
        "tests/evals/diagnostics/cases.py",
    ]
    run(place, "-c", SHOWS)
    run(place, "-m", "merge_models.evals.report.reference", "docs")
    assert "largest_entry_ratio" in (place / "docs/report.md").read_text(encoding="utf-8")
    assert "largest_entry_ratio" in (place / "docs/report.schema.json").read_text(encoding="utf-8")
    assert run_tests(place, "tests/evals/diagnostics/test_registry.py") >= 10
