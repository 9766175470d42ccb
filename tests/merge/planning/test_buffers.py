"""Buffers that are computed when a model is loaded: one store keeps them, another does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from merge_models.merge import PlanError, run_recipe
from merge_models.merge.strategies import Linear, TaskArithmetic
from tests.helpers import merge_states

MASK = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
BUFFERS = {
    "Llama": ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
    "Falcon": ("transformer.h.0.self_attention.maybe_rotary.inv_freq", torch.ones(4)),
    "ESM": ("esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq", torch.ones(4)),
    "Pythia mask": ("gpt_neox.layers.0.attention.bias", MASK),
    "Pythia": ("gpt_neox.layers.0.attention.masked_bias", torch.tensor(-1e9)),
    "GPT-2": ("h.0.attn.bias", MASK.float()),
    "GPT-Neo": ("transformer.h.0.attn.attention.bias", MASK),
    "CodeGen": ("transformer.h.0.attn.causal_mask", MASK),
    "RoBERTa": ("roberta.embeddings.token_type_ids", torch.zeros(1, 8, dtype=torch.int64)),
    "BERT": ("bert.embeddings.position_ids", torch.arange(8)[None]),
    "Swin": ("encoder.layers.0.attention.self.relative_position_index", torch.arange(16).view(4, 4)),
}
every_buffer = pytest.mark.parametrize(("name", "value"), BUFFERS.values(), ids=BUFFERS)


def models(name: str, value: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model without the buffer, and one with it."""
    return {"w": torch.zeros(2, 2)}, {"w": torch.ones(2, 2), name: value}


@every_buffer
@pytest.mark.parametrize("keeps_first", [False, True])
def test_what_not_all_keep_is_dropped(name: str, value: Tensor, keeps_first: bool) -> None:
    without, having = models(name, value)
    merged = merge_states([having, without] if keeps_first else [without, having], Linear())
    assert merged.keys() == {"w"} and torch.equal(merged["w"], torch.full((2, 2), 0.5))


@every_buffer
def test_what_the_base_lacks_is_dropped(name: str, value: Tensor) -> None:
    without, having = models(name, value)
    merged = merge_states([having], TaskArithmetic(weight=0.5), base=without)
    assert merged.keys() == {"w"} and torch.equal(merged["w"], torch.full((2, 2), 0.5))


@every_buffer
def test_what_all_keep_is_kept(name: str, value: Tensor) -> None:
    _, having = models(name, value)
    merged = merge_states([having, {**having, "w": torch.zeros(2, 2)}], Linear())
    assert torch.equal(merged[name], value)


@pytest.mark.parametrize(
    "name", ["attn.c_proj.bias", "attention.dense.bias", "attn.bias", "embed_positions.weight"]
)
def test_a_parameter_that_one_lacks_is_an_error(name: str) -> None:
    without, having = models(name, torch.ones(8))
    with pytest.raises(PlanError, match=f"has no tensor '{name}'"):
        merge_states([without, having], Linear())
    with pytest.raises(PlanError, match=f"has no tensor '{name}'"):
        merge_states([having], TaskArithmetic(), base=without)


@pytest.mark.parametrize("floats_first", [False, True])
def test_whole_numbers_win_over_floating_point(floats_first: bool) -> None:
    whole = {"w": torch.zeros(2), "bert.embeddings.position_ids": torch.arange(4)}
    other = {"w": torch.ones(2), "bert.embeddings.position_ids": torch.arange(4.0)}
    order = {"a": other, "b": whole} if floats_first else {"a": whole, "b": other}
    recipe = {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
    merged = run_recipe(recipe, models=order)
    assert merged["bert.embeddings.position_ids"].dtype == torch.int64
    assert torch.equal(merged["bert.embeddings.position_ids"], torch.arange(4))
