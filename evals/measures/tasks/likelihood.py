"""Log-likelihoods of tokens under a causal language model, exact for each token and bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

MAX_LOGITS = 64 << 20
"""Numbers in one batch's logits: 256 MiB in float32."""

_MAX_BATCH = 32


class Window(NamedTuple):
    """Part of a text: the model reads tokens ``start`` to ``stop``; those from ``scored`` on are scored."""

    start: int
    scored: int
    stop: int


def windows(length: int, window: int, stride: int) -> list[Window]:
    """Returns windows over a text that score every token but the first exactly once.

    A token has all tokens of its window before it as context: in the first window all that there are, later
    at least ``window - stride``. A stride as long as the window counts as one less: a token without context
    has no likelihood.
    """
    stride = min(stride, window - 1)
    out = []
    scored = 1
    for start in range(0, length, stride):
        stop = min(start + window, length)
        if scored < stop:
            out.append(Window(start, scored, stop))
            scored = stop
        if stop == length:
            break
    return out


def log_likelihoods(model: Any, texts: Sequence[Sequence[int]], window: int, stride: int) -> list[np.ndarray]:
    """Returns the log-likelihood in nats of every token of every text but its first, float64 [tokens - 1].

    Texts are padded on the right, which a causal model cannot see. Values are NaN where the logits are.

    Args:
        model: maps ``input_ids`` and ``attention_mask`` to ``logits`` [batch, tokens, vocabulary].
        texts: token ids.
        window: most tokens that the model reads at once.
        stride: see ``windows``.
    """
    out = [np.full(max(0, len(text) - 1), np.nan) for text in texts]
    parts = [(i, part) for i, text in enumerate(texts) for part in windows(len(text), window, stride)]
    parts.sort(key=lambda item: item[1].stop - item[1].start)
    for batch in _batches(parts, _vocabulary(model)):
        rows = [texts[i][part.start : part.stop] for i, part in batch]
        for (i, part), row in zip(batch, _token_log_likelihoods(model, rows), strict=True):
            # row[j] is the likelihood of the window's token j + 1
            out[i][part.scored - 1 : part.stop - 1] = row[part.scored - part.start - 1 :]
    return out


def _token_log_likelihoods(model: Any, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        out = []
        for row, of_row in zip(rows, logits, strict=True):
            targets = torch.tensor(row[1:], device=device)
            out.append(_gathered(of_row[: len(row) - 1], targets).cpu().numpy())
    return out


def _gathered(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-softmax at the targets: differences in float64, sums over the vocabulary in float32 or up."""
    import torch

    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    total = torch.logsumexp(wide, -1).double()
    return wide.gather(-1, targets[:, None]).squeeze(-1).double() - total


def _batches(parts: Sequence[tuple[int, Window]], vocabulary: int) -> Iterator[Sequence[tuple[int, Window]]]:
    """Runs of parts, shortest first, whose padded logits stay within ``MAX_LOGITS``."""
    start = 0
    while start < len(parts):
        stop = start + 1
        while stop < len(parts) and stop - start < _MAX_BATCH:
            longest = parts[stop][1].stop - parts[stop][1].start
            if (stop + 1 - start) * longest * vocabulary > MAX_LOGITS:
                break
            stop += 1
        yield parts[start:stop]
        start = stop


def _vocabulary(model: Any) -> int:
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else 1 << 18


def context_of(model: Any, tokenizer: Any | None) -> int:
    """Returns the most tokens that the model and its tokenizer say that it reads; 2^20 where they do not
    say."""
    config = getattr(model, "config", None)
    said = [getattr(config, key, None) for key in ("max_position_embeddings", "n_positions", "n_ctx")]
    said.append(getattr(tokenizer, "model_max_length", None))
    return min((n for n in said if isinstance(n, int) and 0 < n < 1 << 20), default=1 << 20)
