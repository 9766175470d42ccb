"""Perplexity of a text, by domain, through a sliding window: exp of the mean loss of its tokens.

Every token is scored once, except a text's first where the tokenizer puts nothing before it: nothing
predicts that one. The resampled unit is a run of ``BLOCK`` tokens: neighbouring losses are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from merge_models.evals.inputs.encoding import Encoder
from merge_models.evals.measures.tasks.likelihood import log_likelihoods
from merge_models.evals.measures.tasks.resample import Marks

BLOCK = 64


def perplexity_texts(
    documents: Mapping[str, Sequence[str]], tokenizer: Any, tokens: int, seed: int
) -> dict[str, list[list[int]]]:
    """Returns token ids of documents in an order drawn from ``seed``, ``tokens`` in all, domains in equal
    parts.

    The last document of a domain is cut where its part ends.
    """
    encoder = Encoder(tokenizer)
    share = tokens // max(1, len(documents))
    texts: dict[str, list[list[int]]] = {}
    for domain, of_domain in documents.items():
        left, texts[domain] = share, []
        for index in Random(f"{seed} perplexity {domain}").sample(range(len(of_domain)), len(of_domain)):
            ids = encoder.opened(of_domain[index])[:left]
            if len(ids) > 1:
                texts[domain].append(ids)
                left -= len(ids)
            if left < 2:
                break
    return {domain: of_domain for domain, of_domain in texts.items() if of_domain}


def perplexity(model: Any, texts: Sequence[Sequence[int]], window: int, stride: int) -> Marks:
    """Returns losses of the texts' tokens, in blocks; ``Marks.value`` is the perplexity.

    Args:
        model: maps ``input_ids`` and ``attention_mask`` to ``logits``.
        texts: token ids; texts of one token have nothing to score.
        window, stride: see ``likelihood.windows``.
    """
    total, count = [], []
    for found in log_likelihoods(model, texts, window, stride):
        for start in range(0, len(found), BLOCK):
            block = found[start : start + BLOCK]
            total.append(-block.sum())
            count.append(len(block))
    return Marks(np.array(total), np.array(count, dtype=np.float64), "perplexity", higher_is_better=False)
