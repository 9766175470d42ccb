"""Greedy continuations: at each step the most likely token, whatever the model's generation settings say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

_MAX_BATCH = 32


def continuations(
    model: Any, prompts: Sequence[Sequence[int]], length: int, stops: Collection[int]
) -> list[list[int]]:
    """Returns the ids that follow each prompt: at most ``length``, the last one a stop where one came.

    Prompts of one length are run together, so nothing is padded and batches change no result. Logits that are
    not finite end a continuation: there is no most likely token.
    """
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for _, same in groupby(order, key=lambda i: len(prompts[i])):
        places = list(same)
        for start in range(0, len(places), _MAX_BATCH):
            batch = places[start : start + _MAX_BATCH]
            for i, ids in zip(batch, _run(model, [prompts[i] for i in batch], length, stops), strict=True):
                out[i] = ids
    return out


def _run(
    model: Any, prompts: Sequence[Sequence[int]], length: int, stops: Collection[int]
) -> list[list[int]]:
    import torch

    device = next(model.parameters()).device
    everything = torch.tensor([list(prompt) for prompt in prompts], device=device)
    out: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    ids, cache = everything, None
    with torch.inference_mode():
        for _ in range(length):
            step = model(input_ids=ids, past_key_values=cache, use_cache=True)
            last = step.logits[:, -1].float()
            chosen = last.argmax(-1)
            finite = torch.isfinite(last).all(-1).tolist()
            for i in list(going):
                if finite[i]:
                    out[i].append(int(chosen[i]))
                if not finite[i] or out[i][-1] in stops:
                    going.remove(i)
            if not going:
                break
            cache = getattr(step, "past_key_values", None)
            everything = torch.cat([everything, chosen[:, None]], 1)
            ids = everything if cache is None else chosen[:, None]
    return out


def stops_of(model: Any, tokenizer: Any) -> set[int]:
    """Returns the tokens that end a text, by the tokenizer and the model's generation settings."""
    found: set[object] = set()
    for said in (
        getattr(tokenizer, "eos_token_id", None),
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
    ):
        found |= set(said if isinstance(said, (list, tuple)) else [said])
    return {token for token in found if isinstance(token, int)}
