"""The external harness: a stand-in of it, and the real one where it is installed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from merge_models.evals.inputs.models import open_model
from merge_models.evals.measures.tasks.harness import run_harness
from merge_models.evals.measures.tasks.probe import TaskProbe
from merge_models.evals.measures.tasks.settings import TaskSettings
from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out
from merge_models.merge.errors import MergeError


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A stand-in for lm_eval: records how it is called, and answers in its form."""
    calls: dict[str, Any] = {}

    def simple_evaluate(**settings: Any) -> dict[str, Any]:
        calls.update(settings)
        if settings["tasks"] == ["unknown_task"]:
            raise KeyError("Tasks not found: unknown_task\nsecond line")
        right = [1.0, 0.0, 1.0, 1.0]
        return {
            "results": {
                "arc": {"alias": "arc", "acc,none": 0.75, "acc_stderr,none": 0.25, "odd,none": "N/A"},
                "wiki": {"word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
                "group": {"acc,none": 0.75},
            },
            "samples": {
                "arc": [{"acc": value, "filter": "none"} for value in right],
                "wiki": [{"word_perplexity": (-30.0, 12), "filter": "none"}],
            },
            "higher_is_better": {"arc": {"acc": True}, "wiki": {"word_perplexity": False}},
        }

    package, models, adapter = ModuleType("lm_eval"), ModuleType("lm_eval.models"), ModuleType("huggingface")
    package.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    adapter.HFLM = lambda **settings: SimpleNamespace(**settings)  # type: ignore[attr-defined]
    for name, module in (
        ("lm_eval", package), ("lm_eval.models", models), ("lm_eval.models.huggingface", adapter)
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    yield calls


def test_the_harness_is_run_on_the_model_in_memory(harness: dict[str, Any]) -> None:
    model, tokenizer = object(), object()
    found = run_harness(model, tokenizer, ["arc", "wiki"], limit=4, seed=3)
    assert harness["model"].pretrained is model and harness["model"].tokenizer is tokenizer
    assert (harness["limit"], harness["random_seed"], harness["torch_random_seed"]) == (4, 3, 3)
    arc, wiki = found
    assert (arc.task, arc.metric, arc.estimate.value, arc.n, arc.higher_is_better) == (
        "arc",
        "acc",
        0.75,
        4,
        True,
    )
    assert arc.marks is not None and arc.marks.total.tolist() == [1, 0, 1, 1]
    assert (wiki.metric, wiki.estimate.value, wiki.estimate.low, wiki.higher_is_better) == (
        "word_perplexity", 12.0, None, False
    )  # fmt: skip
    assert wiki.marks is None


def test_what_the_harness_raises_is_one_clean_line(harness: dict[str, Any]) -> None:
    with pytest.raises(MergeError, match="lm-eval cannot run unknown_task .*Tasks not found") as caught:
        run_harness(None, None, ["unknown_task"], limit=None, seed=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(MergeError, match="is no name of an lm-eval task"):
        TaskProbe(None, TaskSettings(lm_eval=["../task.yaml"]))


def test_without_the_harness_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MergeError, match=r'pip install "merge-models\[lm-eval\]"'):
        TaskProbe(None, TaskSettings(lm_eval=["arc_easy"]))


def test_the_real_harness_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of one's own in its form, data from a local file: sums that the adding expert knows."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    importlib.import_module("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    rows = [
        {"text": p, "choices": [SKILLS["adding"].answer(p), "1."], "label": 0} for p in held_out("adding", 8)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    with open_model(demo_folder("adding")) as loaded:
        found = run_harness(loaded.model, loaded.tokenizer, [task], limit=None, seed=0)
    (acc,) = [result for result in found if result.metric == "acc"]
    assert acc.estimate.value == 1.0 and acc.n == 8 and acc.marks is not None
