"""Models without weights, whose likelihoods are known, and a tokenizer of letters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from merge_models.evals.measures.tasks.resample import Marks

VOCABULARY = 50


class Model(nn.Module):
    """A causal model of the last ``reach`` tokens only, given as a function from them to logits."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocabulary)
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.logits(input_ids))

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Uniform."""
        return torch.zeros(*ids.shape, self.config.vocab_size)


class Copier(Model):
    """Says the token that it reads, with certainty."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return 1e4 * nn.functional.one_hot(ids, self.config.vocab_size).float()


class Summer(Model):
    """Logits depend on the sum of all tokens so far, so context matters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(101, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids.cumsum(1) % 101]


class Broken(Model):
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.full((*ids.shape, self.config.vocab_size), math.nan)


class Letters:
    """A tokenizer of one id a character; pairs in ``joined`` become one token, wherever they stand."""

    unk_token_id = eos_token_id = None
    model_max_length = int(1e30)

    def __init__(self, joined: str = "", opening: Sequence[int] = ()) -> None:
        self.joined, self.opening = joined, list(opening)

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = []
        while text:
            size = 2 if self.joined and text.startswith(self.joined) else 1
            ids.append(VOCABULARY - 1 if size == 2 else ord(text[0]) % 47)
            text = text[size:]
        return {"input_ids": [*self.opening, *ids] if add_special_tokens else ids}


def reference(model: Summer, text: Sequence[int], start: int = 0) -> np.ndarray:
    """Float64 log-likelihoods of a text's tokens but the first, with all tokens from ``start`` as context."""
    out = []
    for place in range(start + 1, len(text)):
        logits = model.table.double()[sum(text[start:place]) % 101]
        out.append(float(torch.log_softmax(logits, -1)[text[place]]))
    return np.array(out)


def text_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


def items(*right: float) -> Marks:
    return Marks(np.array(right), np.ones(len(right)), "accuracy")
