"""Loading models to measure: what they are, what they compute in, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_models.evals.inputs.models import open_model
from merge_models.merge.demo import demo_folder
from merge_models.merge.errors import MergeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder("base"), tmp_path / "model"))


def edit_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_causal_model_in_float32_that_is_gone_afterwards() -> None:
    with open_model(demo_folder("base")) as (model, tokenizer, kind):
        assert kind == "causal" and not model.training
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert tokenizer is not None
        assert model(torch.tensor([tokenizer("sort:")["input_ids"]])).logits.isfinite().all()
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_an_encoder_is_its_body(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with open_model(tmp_path) as (model, tokenizer, kind):
        assert (kind, tokenizer) == ("encoder", None)
        assert model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, "are missing"),
        ({"num_hidden_layers": 10**9}, "does not fit its tensors"),
        ({"hidden_size": 1 << 40}, "does not fit its tensors"),
        ({"intermediate_size": 128}, "shape|does not load"),
        ({"architectures": ["NoSuchModel"], "auto_map": {"AutoModel": "evil.Model"}}, "not run"),
        ({"architectures": ["pipeline"]}, "not run"),
        ({"architectures": None, "model_type": "unheard_of"}, "not run"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"hidden_act": "no such function"}, "does not load"),
    ],
)
def test_what_does_not_load_is_one_line(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_config(folder, **change)
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(MergeError, match=message) as caught, open_model(folder):
        pass
    assert "\n" not in str(caught.value)


def test_without_a_config_or_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(MergeError, match="no config.json"), open_model(folder):
        pass
    with pytest.raises(MergeError, match="no such file"), open_model(tmp_path / "nothing"):
        pass


def test_a_broken_tokenizer_is_said(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(MergeError, match="tokenizer does not load"), open_model(folder):
        pass
