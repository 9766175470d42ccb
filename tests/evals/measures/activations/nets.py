"""Small nets, text for them, and a probe that saw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from merge_models.evals.inputs.calibration import Batches, Text
from merge_models.evals.measures.activations.probe import ActivationProbe
from merge_models.evals.schema import ActivationDiagnosis, Calibration, ModelRef, SiteActivations

VOCABULARY, LENGTH = 40, 24


def mlp(seed: int, *widths: int) -> Any:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, outside in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def llama(seed: int, **settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **settings})).eval()


def text(sequences: int = 12, length: int = LENGTH, seed: int = 0) -> Batches:
    """Random ids in two domains."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (sequences, length))
    half = {"a": ids[: sequences // 2], "b": ids[sequences // 2 :]}
    tokens = sequences * (length - 1)
    record = Calibration(source="random", digest="0" * 64, sequences=sequences, tokens=tokens, seed=seed)
    return Batches(half, record, 0.0, Text("random", {}, record.digest))


def probed(
    merge: Any, parents: list[Any], base: Any = None, batches: Batches | None = None, **options: Any
) -> ActivationDiagnosis:
    found = ActivationProbe(batches or text(), **options)
    for n, parent in enumerate(parents):
        found.observe(ModelRef(name=f"p{n}", role="parent"), parent)
    if base is not None:
        found.observe(ModelRef(name="base", role="base"), base)
    found.observe(ModelRef(name="merge", role="merge"), merge)
    return found.finish()


def ratio(site: SiteActivations) -> float:
    assert site.variance_ratio is not None
    return site.variance_ratio.value


def kernel_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA from n x n kernels, as Song et al. (2012) write HSIC_1."""
    k, m = x @ x.T, y @ y.T
    n = len(x)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        one = np.ones(n)
        middle = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return float((np.trace(a @ b) + middle - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3)))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def bert() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    return BertModel(config).eval()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2)).eval()
