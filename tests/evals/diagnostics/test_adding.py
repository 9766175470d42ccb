"""A new diagnostic takes three places: its file, the registry, the tests' table; all else follows by
itself."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

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


def copied(place: Path) -> Path:
    """The tree as it must be to run: this room and its tests copied, the others linked."""
    package = place / "merge_models"
    package.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "evals", package / "evals", ignore=ignored)
    for room in ("merge", "manifolds"):
        (package / room).symlink_to(ROOT / room)
    (place / "evals").symlink_to(package / "evals")
    shutil.copytree(ROOT / "tests/evals/diagnostics", place / "tests/evals/diagnostics", ignore=ignored)
    for folder in ("tests", "tests/evals"):
        (place / folder / "__init__.py").touch()
    shutil.copytree(ROOT / "docs", place / "docs")
    return package / "evals"


def edit(file: Path, before: str, added: str) -> None:
    """Puts lines before the only place where a text stands."""
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    file.write_text(text.replace(before, added + before), encoding="utf-8")


def changed(old: Path, new: Path) -> list[str]:
    """Files that differ, or that only one of two folders has."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (old, new)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    same, _, _ = filecmp.cmpfiles(old, new, names, shallow=False)
    return sorted(names - set(same))


def run(place: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_diagnostic_takes_three_places_and_is_everywhere(tmp_path: Path) -> None:
    evals = copied(tmp_path)
    registry, table = evals / "diagnostics/registry.py", tmp_path / "tests/evals/diagnostics/cases.py"
    (evals / "diagnostics/weights/largest_entry.py").write_text(NEW_FILE, encoding="utf-8")
    edit(registry, "from merge_models.evals.diagnostics.weights.mean_norm import", IMPORT)
    edit(registry, "    # activations of one model at a site\n", "    LARGEST_ENTRY,\n")
    edit(table, '    Known("statistics", "variance",', ROW)
    assert changed(ROOT / "evals", evals) == [
        "diagnostics/registry.py",
        "diagnostics/weights/largest_entry.py",
    ]
    assert changed(ROOT / "tests/evals/diagnostics", table.parent) == ["cases.py"]
    run(tmp_path, "-c", SHOWS)
    run(tmp_path, "-m", "merge_models.evals.report.reference", "docs")
    assert "largest_entry_ratio" in (tmp_path / "docs/report.md").read_text(encoding="utf-8")
    assert "largest_entry_ratio" in (tmp_path / "docs/report.schema.json").read_text(encoding="utf-8")
    tests = "tests/evals/diagnostics/test_registry.py"
    run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", tests)
