"""A few hundred of the cases of ``python -m tests.fuzz``, and what the campaign itself must notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzz import cases
from tests.fuzz.run import Bench

COUNT, PART = 210, 70


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.mark.parametrize("first", range(0, COUNT, PART))
def test_mutated_inputs_end_in_success_or_one_line(first: int, bench: Bench) -> None:
    outcomes = [bench.run(number) for number in range(first, first + PART)]
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert {bool(outcome.message) for outcome in outcomes} == {True, False}


def test_a_case_is_made_from_its_number_alone(tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        cases.write_templates(tmp_path / name)
        arguments = cases.make(1234, tmp_path / name)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        made.append((arguments, [(str(f.relative_to(tmp_path / name)), f.read_bytes()) for f in files]))
    assert made[0] == made[1]


def _crash(place: Path) -> None:
    raise ZeroDivisionError


def _write_outside(place: Path) -> None:
    (place / "models" / "new").touch()


def _leave_a_target(place: Path) -> None:
    (place / "outs" / "out").mkdir()
    raise SystemExit(2)


def _be_slow(place: Path) -> None:
    started = time.process_time()
    while time.process_time() - started < 0.3:
        sum(range(1000))


def _be_large(place: Path) -> None:
    bytearray(300 << 20)


def _show_control_characters(place: Path) -> None:
    print("\x1b[2J")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a traceback": (_crash, "ZeroDivisionError"),
    "a file beside the target": (_write_outside, "changed something"),
    "a target after a failure": (_leave_a_target, "left a target behind"),
    "slow": (_be_slow, "took"),
    "large": (_be_large, "MB"),
    "control characters": (_show_control_characters, "control characters"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_bench_sees_what_it_is_for(fault: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    does, told = FAULTS[fault]
    monkeypatch.setattr("merge_models.merge.recipes.recipe.load_recipes", lambda file: does(Path.cwd()))
    monkeypatch.setattr("tests.fuzz.run.MAX_SECONDS", 0.2)
    outcome = bench.run(0)
    assert any(told in wrong for wrong in outcome.wrong), outcome
