"""Predictions are those of the model, whatever its head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.evals.measures.activations.nets import VOCABULARY, gpt2, llama, probed, text


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=1.0,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, logits_scaling=3.0,
    )  # fmt: skip
    return GraniteForCausalLM(config).eval()


def strange() -> Any:
    """A head that is more than a matrix."""
    model = llama(5)
    forward = model.forward
    model.forward = lambda *a, **k: _squared(forward(*a, **k))
    return model


def _squared(output: Any) -> Any:
    output.logits = 30 * output.logits.square()
    return output


@pytest.mark.parametrize("make", [lambda: llama(0), gpt2, gemma, granite, strange])
def test_predictions_are_those_of_the_model(make: Callable[[], Any]) -> None:
    """Loss, entropy and distances against float64 numbers from the model's own logits, of all tokens."""
    model, batches = make(), text(6, 10)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    if make is strange:
        other = strange()
        with torch.no_grad():
            other.lm_head.weight.mul_(1.3)
    head = probed(model, [other], batches=batches).head
    assert head is not None and head.predictions == 6 * 8
    ids = torch.from_numpy(np.concatenate(list(batches.ids.values())))
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids).logits[:, 1:-1].double().log_softmax(-1) for m in (model, other))
    labels = ids[:, 2:]
    assert head.loss["merge"].value == pytest.approx(
        -ours.gather(-1, labels[..., None]).mean().item(), rel=1e-4
    )
    assert head.entropy["p0"].value == pytest.approx(-(theirs.exp() * theirs).sum(-1).mean().item(), rel=1e-4)
    p, q = theirs.exp(), ours.exp()
    m = ((p + q) / 2).log()
    js = ((p * (theirs - m)).sum(-1) + (q * (ours - m)).sum(-1)) / 2
    angle = 2 * torch.arccos((p * q).sqrt().sum(-1).clamp(max=1))
    (divergence,) = head.divergences
    tolerance: dict[str, Any] = {"rel": 2e-3, "abs": 1e-7}
    assert divergence.kl.value == pytest.approx((p * (theirs - ours)).sum(-1).mean().item(), **tolerance)
    assert divergence.js.value == pytest.approx(js.mean().item(), **tolerance)
    assert divergence.fisher_rao.value == pytest.approx(angle.mean().item(), **tolerance)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert divergence.top1_agreement.value == pytest.approx(same)
    assert divergence.kl_by_domain.keys() == {"a", "b"}


@pytest.mark.parametrize("tied", [True, False])
def test_predictions_are_compared_over_the_tokens_that_all_have(tied: bool) -> None:
    """A model with more tokens, of which none is in the text, predicts the others as before."""
    parent = llama(0, tie_word_embeddings=tied)
    merge = copy.deepcopy(parent)
    merge.resize_token_embeddings(VOCABULARY + 7, mean_resizing=False)
    with torch.no_grad():
        merge.get_output_embeddings().weight[VOCABULARY:] = 3.0
    found = probed(merge, [parent], llama(1, tie_word_embeddings=tied))
    assert found.head is not None
    of_parent, of_base = found.head.divergences
    assert of_parent.kl.value == pytest.approx(0, abs=1e-12) and of_parent.top1_agreement.value == 1
    assert of_base.kl.value > 1e-3
    assert found.head.loss["merge"].value == pytest.approx(found.head.loss["p0"].value, rel=1e-6)
