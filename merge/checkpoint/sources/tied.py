"""Tensors that share their weights with another one, which is then stored under one of the two names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.sources.source import Source

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight",
    "shared.weight",
)  # fmt: skip
_NESTED_HEADS = (".lm_head.weight", ".embed_out.weight")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


def is_head(name: str) -> bool:
    """Returns whether a tensor is the head of a language model, which may be a part of the whole."""
    return name in HEADS or name.endswith(_NESTED_HEADS)


def find_tensor(model: Source, name: str) -> TensorInfo | None:
    """Returns a tensor of a model, under another name where weights are tied."""
    if name in model.tensors:
        return model.tensors[name]
    alias = getattr(model, "metadata", {}).get(name)
    if alias is not None and alias in model.tensors:
        return model.tensors[alias]
    if is_head(name) and says_tied(model.config, name) is not False:
        part = name.rpartition(".lm_head.")[0] or name.rpartition(".embed_out.")[0]
        embeddings = [n for n in model.tensors if n.endswith(EMBEDDINGS) and n.startswith(part)]
        return model.tensors[embeddings[0]] if len(embeddings) == 1 else None
    return None


def says_tied(config: Mapping[str, Any], head: str) -> bool | None:
    """Returns what a config says of a head: that it is the embedding, or not, or nothing.

    A language model that is a part of another has a config of its own in the whole one's, which decides
    for a head that lies in the part.
    """
    parts = [config[key] for key in _TEXT_CONFIGS if isinstance(config.get(key), dict)]
    order = [config, *parts] if head in HEADS else [*parts, config]
    said = [part["tie_word_embeddings"] for part in order if "tie_word_embeddings" in part]
    return bool(said[0]) if said and said[0] is not None else None


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a model whose head is not its embedding, whatever it said before."""
    parts = {key: config[key] for key in _TEXT_CONFIGS if isinstance(config.get(key), dict)}
    said = {key: {**part, "tie_word_embeddings": False} for key, part in parts.items()}
    return {**config, **said, "tie_word_embeddings": False}
