"""Fixtures that several files take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merge_models.merge import merge
from merge_models.merge.demo.skills import SKILLS
from merge_models.merge.strategies import Linear
from tests.evals.merges import EXPERTS


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solved prompts of the three skills, none of which training has seen."""
    file = tmp_path_factory.mktemp("text") / "skills.jsonl"
    rows = []
    for name, skill in SKILLS.items():
        prompts = skill.prompts("calibration", held_out=True)
        for _ in range(60):
            prompt = next(prompts)
            rows.append(json.dumps({"domain": name, "text": prompt + skill.answer(prompt)}))
    file.write_text("\n".join(rows))
    return file


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mean") / "merged"
    merge(EXPERTS, Linear(), out=out)
    return out
