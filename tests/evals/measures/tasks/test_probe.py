"""Task scores: known answers, float64 references, and the demo's experts as real models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from merge_models.evals.inputs.calibration import calibration_batches
from merge_models.evals.inputs.models import open_model
from merge_models.evals.measures.tasks.probe import TaskProbe
from merge_models.evals.measures.tasks.settings import TaskSettings
from merge_models.evals.schema import ModelRef
from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out, score
from merge_models.merge.errors import MergeError
from tests.evals.measures.tasks.models import Letters


def test_a_task_named_as_a_domain_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "code.jsonl"
    file.write_text('{"prompt": "p", "answer": "a"}')
    tokenizer: Any = Letters()
    with pytest.raises(MergeError, match="two tasks are called 'code'"):
        TaskProbe(calibration_batches(tokenizer), TaskSettings(files=[file]))


def observe(probe: TaskProbe, *names: tuple[str, str]) -> None:
    torch.set_num_threads(1)
    for name, role in names:
        with open_model(demo_folder(name)) as loaded:
            ref = ModelRef(name=f"{name} as {role}", role=role)  # type: ignore[arg-type]
            probe.observe(ref, loaded.model, loaded.tokenizer)


ITEMS = 16


@pytest.fixture(scope="module")
def skills_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("skills") / "skills.jsonl"
    rows = [
        {"task": name, "prompt": prompt, "answer": skill.answer(prompt)}
        for name, skill in SKILLS.items()
        for prompt in held_out(name, ITEMS)
    ]
    rows += [
        {
            "task": "sums",
            "prompt": prompt,
            "choices": [SKILLS["adding"].answer(prompt), "1.", "zzz."],
            "answer": 0,
        }
        for prompt in held_out("adding", 20)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_the_experts_score_as_the_demo_says(skills_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompts.jsonl"
    rows = [
        {"text": prompt + skill.answer(prompt), "domain": f"text {name}"}
        for name, skill in SKILLS.items()
        for prompt in held_out(name, 60)
    ]
    text.write_text("\n".join(map(json.dumps, rows)))
    with open_model(demo_folder("base")) as loaded:
        batches = calibration_batches(loaded.tokenizer, source=text, tokens=1536, length=32)  # type: ignore[arg-type]
    probe = TaskProbe(
        batches,
        TaskSettings(files=[skills_file], perplexity_tokens=1800, continuations=6, new_tokens=16),
        seed=1,
    )
    observe(probe, ("sorting", "parent"), ("adding", "parent"), ("base", "base"), ("adding", "merge"))
    parents = [ModelRef(name=f"{name} as parent", role="parent") for name in ("sorting", "adding")]
    found = probe.finish(parents, ModelRef(name="base as base", role="base"))

    scores = {(s.model, s.task, s.metric): s for s in found.scores}
    for name in ("sorting", "adding"):
        with open_model(demo_folder(name)) as loaded:
            expected = score(loaded.model, loaded.tokenizer, ITEMS)  # type: ignore[arg-type]
        for skill, share in expected.items():
            assert scores[f"{name} as parent", skill, "exact match"].score.value == pytest.approx(share)
    assert scores["adding as parent", "sums", "accuracy"].score.value >= 0.95
    for domain in ("text sorting", "text adding"):
        twin, parent = (scores[f"adding as {role}", domain, "perplexity"] for role in ("merge", "parent"))
        assert (twin.score, twin.n) == (parent.score, parent.n)
    recoveries = {(r.task, r.metric): r for r in found.recovery}
    assert recoveries["adding", "exact match"].fraction == pytest.approx(1.0)
    assert recoveries["adding", "exact match"].best_parent == "adding as parent"
    lost = recoveries["sorting", "exact match"]
    assert lost.fraction is not None and lost.fraction < 0.3
    assert recoveries["reversing", "exact match"].fraction is None  # no parent has it
    assert found.least_recovery is not None and found.mean_recovery is not None
    assert found.least_recovery <= found.mean_recovery <= 1.01
    assert found.least_recovered is not None
    assert [g.model for g in found.generation] == [
        "sorting as parent", "adding as parent", "base as base", "adding as merge"
    ]  # fmt: skip
    assert found.model_validate_json(found.model_dump_json()) == found


def test_a_model_with_nan_scores_nothing_and_crashes_nothing(skills_file: Path) -> None:
    torch.set_num_threads(1)
    with open_model(demo_folder("base")) as loaded:
        assert loaded.tokenizer is not None
        batches = calibration_batches(loaded.tokenizer, tokens=1024)
        probe = TaskProbe(batches, TaskSettings(files=[skills_file], limit=5))
        parent, merge = ModelRef(name="p", role="parent"), ModelRef(name="m", role="merge")
        probe.observe(parent, loaded.model, loaded.tokenizer)
        next(loaded.model.parameters()).data.fill_(math.nan)
        probe.observe(merge, loaded.model, loaded.tokenizer)
    found = probe.finish([parent])
    assert not [s for s in found.scores if s.model == "m" and s.metric == "perplexity"]
    assert {s.score.value for s in found.scores if s.model == "m"} == {0.0}
    assert found.generation[1].empty == 1.0 and found.generation[1].distinct2 is None


def test_models_that_predict_nothing_are_passed_over_or_refused(skills_file: Path) -> None:
    ref, module = ModelRef(name="net", role="merge"), nn.Linear(2, 2)
    probe = TaskProbe(None)
    probe.observe(ref, module, None)
    assert probe.finish([]).scores == ()
    with pytest.raises(MergeError, match="net has no tokenizer, so it answers no questions"):
        TaskProbe(None, TaskSettings(files=[skills_file])).observe(ref, module, None)


def test_the_probe_leaves_the_model_as_it_was() -> None:
    torch.set_num_threads(1)
    with open_model(demo_folder("base")) as loaded:
        assert loaded.tokenizer is not None
        before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        batches = calibration_batches(loaded.tokenizer, tokens=1024)
        probe = TaskProbe(batches, TaskSettings(perplexity_tokens=256, continuations=4))
        probe.observe(ModelRef(name="m", role="merge"), loaded.model, loaded.tokenizer)
        assert not loaded.model.training
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor, before[name])
