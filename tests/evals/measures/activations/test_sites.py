"""Where a model is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from merge_models.evals.measures.activations.modules import diagnose_modules
from merge_models.evals.measures.activations.sites import find_sites
from tests.evals.measures.activations.nets import VOCABULARY, bert, gpt2, llama, probed


def albert() -> Any:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    return AlbertModel(config).eval()


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_local_experts=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "attention", "mlp_name"),
    [
        (lambda: llama(0), "model.layers.{}.self_attn", "model.layers.{}.mlp"),
        (gpt2, "transformer.h.{}.attn", "transformer.h.{}.mlp"),
        (bert, "encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
        (mixtral, "model.layers.{}.self_attn", "model.layers.{}.mlp"),
    ],
)
def test_sites_are_found_by_structure(make: Callable[[], Any], attention: str, mlp_name: str) -> None:
    model = make()
    found = probed(model, [model])
    layers = [n for n in range(2) for _ in range(3)]
    assert [s.layer for s in found.sites] == [None, *layers]
    named = {(s.site, s.layer): s.module for s in found.sites}
    for n in range(2):
        assert named["attention", n] == attention.format(n)
        assert named["mlp", n] == mlp_name.format(n)
    assert all(s.merge.variance and s.merge.variance > 0 for s in found.sites)


def test_shared_layers_are_measured_at_each_depth() -> None:
    model = albert()
    sites = [s for s in probed(model, [model]).sites if s.site == "residual"]
    assert [s.layer for s in sites] == [0, 1, 2]
    assert len({s.merge.variance for s in sites}) == 3


def test_torchs_own_encoder_and_plain_nets() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = diagnose_modules(model, [model], batches=[torch.randn(6, 5, 8)])
    assert [s.module for s in found.sites if s.site == "mlp"] == ["layers.0.linear2", "layers.1.linear2"]
    assert [s.module for s in found.sites if s.site == "attention"] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]
    convolution = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 2))
    assert [s.module for s in find_sites(convolution)] == ["0", "1", "2", "3"]
    sites = diagnose_modules(convolution, [convolution], batches=[torch.randn(9, 3, 8, 8)]).sites
    x = torch.randn(9, 3, 8, 8)
    sites = diagnose_modules(convolution, [convolution], batches=[x]).sites
    expected = convolution[0](x).movedim(1, -1).reshape(-1, 5).double().var(0, correction=0).mean().item()
    assert sites[0].merge.variance == pytest.approx(expected)
