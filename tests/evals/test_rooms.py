"""Arrows inside evals run as a measurement flows, and what is imported first stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.test_structure import MODULES, own_imports

ORDER = ("diagnostics", "schema", "inputs", "measures", "judgement", "report", "repairs")
"""Each room may use itself and those before it; the files beside the rooms, the API, use all."""

HOME = "merge_models.evals."
FILES = [module for module in MODULES if module.startswith(HOME) and module.split(".")[2] in ORDER]


@pytest.mark.parametrize("module", FILES)
def test_arrows_run_as_a_measurement_flows(module: str) -> None:
    here = ORDER.index(module.split(".")[2])
    for other in own_imports(MODULES[module]):
        if other.startswith("merge_models.evals"):
            room = other.removeprefix(HOME).split(".")[0]
            assert room in ORDER, f"{module} imports {other}, which is built on it"
            assert ORDER.index(room) <= here, f"{module} imports {other}"


def test_every_room_is_in_the_order() -> None:
    rooms = {module.split(".")[2] for module, file in MODULES.items() if module.startswith(HOME)}
    packages = {
        room
        for room in rooms
        if f"{HOME}{room}" in MODULES and MODULES[f"{HOME}{room}"].name == "__init__.py"
    }
    assert packages == set(ORDER)


@pytest.mark.parametrize("module", ["schema", "diagnostics.registry", "evaluation", "inspect", "report"])
def test_records_and_calls_load_no_torch(module: str) -> None:
    script = f"import {HOME}{module}, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
