"""Tensors that share their weights with another one, which is then stored under one of the two names."""

from __future__ import annotations

from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.source import Source

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight",
    "shared.weight",
)  # fmt: skip


def find_tensor(model: Source, name: str) -> TensorInfo | None:
    """A tensor of a model, under another name where weights are tied."""
    if name in model.tensors:
        return model.tensors[name]
    alias = getattr(model, "metadata", {}).get(name)
    if alias is not None and alias in model.tensors:
        return model.tensors[alias]
    if name in HEADS and model.config.get("tie_word_embeddings", True):
        found = [n for n in model.tensors if n.endswith(EMBEDDINGS)]
        return model.tensors[found[0]] if len(found) == 1 else None
    return None
