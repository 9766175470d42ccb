"""How long a text may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merge_models.evals.inputs.positions import most_positions
from merge_models.evals.schema import Evaluation
from tests.evals.merges import EXPERTS, run


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({}, None),
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64, "n_ctx": 128}, 64),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 32}}, 32),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ({"model_type": "bert", "max_position_embeddings": 66, "pad_token_id": 1}, 66),
        ({"max_position_embeddings": -1, "n_positions": True, "n_ctx": "64"}, None),
    ],
)
def test_positions_are_told_by_configs(config: dict[str, Any], most: int | None) -> None:
    assert most_positions(config) == most


def test_sequences_are_as_short_as_the_models_take(tmp_path: Path, text: Path) -> None:
    """Where only config.json says it: the tokenizer has no limit, and nothing fails after the merge."""
    parents = [tmp_path / place.name for place in EXPERTS[:2]]
    for source, place in zip(EXPERTS, parents, strict=False):
        shutil.copytree(source, place)
        settings = json.loads((place / "tokenizer_config.json").read_text())
        settings.pop("model_max_length", None)
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    out, report = tmp_path / "out", tmp_path / "report.json"
    code, printed = run("merge", *map(str, parents), "-o", str(out), "--eval", "--data", str(text),
                        "--report", str(report))  # fmt: skip
    assert code == 0, printed
    found = Evaluation.from_json(report.read_text())
    assert any("calibration sequences have 64 tokens, not 256" in note for note in found.notes)
    assert found.activations is not None
    kept = found.activations.calibration
    assert kept.tokens == kept.sequences * 63
    repaired = tmp_path / "repaired"
    code, printed = run("repair", str(out), "-o", str(repaired), "--data", str(text), "--tokens", "2048")
    assert code == 0 and "calibration sequences have 64 tokens" in printed, printed
