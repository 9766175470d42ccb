"""Measures as objects: one of a caller's own is run beside those that there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from merge_models.evals import Running, Tasks, TaskSettings, TextSample, Weights, evaluate
from merge_models.evals.measures.measure import Subject
from merge_models.merge.demo import demo_folder
from merge_models.merge.errors import MergeError


class Counting:
    """Notes which models it is shown, in order."""

    name: ClassVar[str] = "counting"
    runs_models: ClassVar[bool] = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.measured: frozenset[str] = frozenset()

    def begin(self, subject: Subject) -> Counting:
        assert subject.text is not None and subject.text.length == 32
        self.measured = subject.measured
        return self

    def observe(self, ref: Any, model: Any, tokenizer: Any) -> None:
        self.seen.append(ref.role)
        assert not model.training and tokenizer is not None

    def finish(self) -> Mapping[str, Any]:
        return {"notes": (f"saw {len(self.seen)} models",)}


def test_a_measure_of_ones_own_sees_every_model_once() -> None:
    merge, parent, base = demo_folder("adding"), demo_folder("sorting"), demo_folder("base")
    steps: list[str] = []
    counting, text = Counting(), TextSample(tokens=1024, length=32)
    running = Running(progress=steps.append)
    found = evaluate(merge, [parent], base, measures=[Weights(), counting], text=text, running=running)
    assert counting.seen == ["parent", "base", "merge"] and counting.measured == {"weights", "counting"}
    assert steps == ["weights", "parent sorting", "base base", "merge adding"]
    assert "saw 3 models" in found.notes and found.weights is not None and found.activations is None


def test_settings_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    steps: list[str] = []
    asked = [Weights(), Tasks(TaskSettings(files=[tmp_path / "none.jsonl"]))]
    running = Running(progress=steps.append)
    with pytest.raises(MergeError, match="none.jsonl"):
        evaluate(demo_folder("adding"), [demo_folder("base")], measures=asked, running=running)
    assert steps == []
