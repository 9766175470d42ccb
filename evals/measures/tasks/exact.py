"""Exact match: the model's greedy text begins with the right answer and does not go on as part of a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merge_models.evals.inputs.encoding import Encoder
from merge_models.evals.measures.tasks.greedy import continuations, stops_of
from merge_models.evals.measures.tasks.items import Exact

_MORE = 2
"""Tokens beyond the answer's own: a space may be a token before it, and one shows that the answer ends."""


def answer(model: Any, tokenizer: Any, items: Sequence[Exact], context: int) -> np.ndarray:
    """Returns 1 where the item is answered, else 0: float64 [items]. Long prompts lose their beginning."""
    encoder = Encoder(tokenizer)
    sizes = [len(encoder.bare(item.answer)) + _MORE for item in items]
    for item, size in zip(items, sizes, strict=True):
        if size >= context:
            raise item.row.error(f"the answer is longer than the model's context of {context} tokens")
    length = max(sizes)
    prompts = []
    for item in items:
        prompt = encoder.opened(item.prompt)
        if not prompt:
            raise item.row.error("'prompt' gives no tokens")
        prompts.append(prompt[-max(1, context - length) :])
    answers = continuations(model, prompts, length, stops_of(model, tokenizer))
    texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in answers]
    return np.array([float(is_right(text, i.answer)) for text, i in zip(texts, items, strict=True)])


def is_right(text: str, wanted: str) -> bool:
    """Returns whether ``text``, without the space before it, is ``wanted`` and then no more of the same word.

    ``7`` does not answer for ``72``, nor ``72`` for ``7``; ``72.`` does for ``72``.
    """
    text, wanted = text.lstrip(), wanted.strip()
    if not text.startswith(wanted):
        return False
    rest = text[len(wanted) :]
    return not (rest[:1].isalnum() and wanted[-1:].isalnum())
