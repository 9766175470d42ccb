"""Multiple choice: the choice to which the model gives the highest likelihood behind the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from merge_models.evals.inputs.encoding import Encoder
from merge_models.evals.measures.tasks.items import Choice
from merge_models.evals.measures.tasks.likelihood import log_likelihoods


class Marks(NamedTuple):
    """For each item from 0 to 1 (k right choices that tie with others count 1/k): float64 [items].

    Attributes:
        plain: by the likelihood of the choice.
        normalised: by the likelihood per UTF-8 byte of the choice, so that long ones are not at a
            disadvantage whatever the tokenizer.
    """

    plain: np.ndarray
    normalised: np.ndarray


def choose(model: Any, tokenizer: Any, items: Sequence[Choice], context: int) -> Marks:
    """Scores the items: the marks of each.

    Prompt and choice are tokenized together, as one text, since a token may lie across their border. All
    choices of an item are scored from the first token at which any of them leaves the prompt's own tokens, so
    each score is the likelihood of the rest of the text given the same tokens. What exceeds the context is
    left out at the beginning.
    """
    encoder = Encoder(tokenizer)
    texts: list[list[int]] = []
    scored: list[int] = []
    for item in items:
        of_item, start = _texts(encoder, item)
        for text in of_item:
            cut = max(0, len(text) - context)
            if start <= cut:
                raise item.row.error(f"a choice is longer than the model's context of {context} tokens")
            texts.append(text[cut:])
            scored.append(start - cut)
    likelihoods = log_likelihoods(model, texts, context, context)
    sums = iter([float(values[start - 1 :].sum()) for values, start in zip(likelihoods, scored, strict=True)])
    plain, normalised = [], []
    for item in items:
        scores = np.array([next(sums) for _ in item.choices])
        sizes = np.array([len(choice.strip().encode()) or 1 for choice in item.choices])
        plain.append(mark(scores, item.right))
        normalised.append(mark(scores / sizes, item.right))
    return Marks(np.array(plain), np.array(normalised))


def mark(scores: np.ndarray, right: int) -> float:
    """Returns 1 where the right one alone is best, 1/k where it ties with k - 1 others, else 0; NaN is never
    best."""
    if np.isnan(scores).any() or scores[right] < scores.max():
        return 0.0
    return 1.0 / int((scores == scores.max()).sum())


def _texts(encoder: Encoder, item: Choice) -> tuple[list[list[int]], int]:
    """Ids of the prompt with each choice behind it, and where scoring begins."""
    prompt = encoder.opened(item.prompt)
    texts = [encoder.opened(item.prompt + choice) for choice in item.choices]
    start = min(_common(prompt, text) for text in texts)
    start = min(start, *(len(text) - 1 for text in texts))
    if start == 0:
        raise item.row.error("the tokenizer joins the whole prompt with a choice; make the prompt longer")
    return texts, start


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
