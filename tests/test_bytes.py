"""No result has changed by a byte: every row of the digest table (``python -m benchmarks.bytes``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import bytes as table
from merge_models.merge.kernels import blocks, compiled

STORED = table.stored()
ROWS = list(table.rows())
HERE = STORED["machine"] == table.machine()
"""Whether rows that depend on the machine's libraries may be compared."""

CHUNK = 40


@pytest.mark.parametrize("first", range(0, len(ROWS), CHUNK))
def test_no_byte_has_changed(first: int) -> None:
    """After a deliberate change: raise NUMERICS, tell the changelog, and write the table again."""
    lines = [table.difference(row, STORED, libraries=HERE) for row in ROWS[first : first + CHUNK]]
    assert not list(filter(None, lines))


def test_the_torch_kernels_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda: None)
    monkeypatch.setattr(blocks, "native_library", lambda: None)
    lines = [table.difference(row, STORED, libraries=False) for row in ROWS if "bfloat16" in row[0]]
    assert not list(filter(None, lines))


def test_the_table_is_of_this_numerics_and_holds_nothing_else() -> None:
    assert STORED["numerics"] == table.numerics()
    assert {*STORED["rows"]} == {name for name, _, _ in ROWS}


def test_one_bit_makes_another_digest() -> None:
    state = table.state(1, "float32", {"w": (3, 4)})
    before = table.digest(state)
    assert before == table.digest({"w": state["w"].clone()})
    state["w"].view(torch.int32)[1, 2] ^= 1
    assert table.digest(state) != before


def test_inputs_are_about_normal_and_made_of_whole_numbers() -> None:
    values = table.normal(3, 100_000)
    assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02
    assert np.allclose(values * 37837.0, np.round(values * 37837.0), rtol=0, atol=1e-6)
