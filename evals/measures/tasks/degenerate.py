"""Counters of degenerate text in continuations: empty, looping, or of few different words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import mean

from merge_models.evals.schema import Generation

LOW_DISTINCT = 0.5
"""Continuations with a smaller share of different bigrams are counted as low."""

_SHOWN, _WIDTH = 4, 240
# Scripts without spaces between words: each sign is taken for a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case; every sign of it where it has no words (a row of dots)."""
    return _WORD.findall(text.lower()) or [c for c in text if not c.isspace()]


def is_looping(found: Sequence[str]) -> bool:
    """Whether three words in a row come three times, or one word three times running."""
    trigrams = Counter(zip(found, found[1:], found[2:], strict=False))
    running = any(a == b == c for a, b, c in zip(found, found[1:], found[2:], strict=False))
    return running or max(trigrams.values(), default=0) >= 3


def distinct2(found: Sequence[str]) -> float | None:
    """Different bigrams over bigrams; None for fewer than two words."""
    bigrams = list(zip(found, found[1:], strict=False))
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def count_degenerate(model: str, pairs: Sequence[tuple[str, str]]) -> Generation:
    """Counts over (prompt, continuation) pairs; the first few are kept for the reader."""
    found = [words(text) for _, text in pairs]
    shares = [share for share in map(distinct2, found) if share is not None]
    n = len(pairs)
    return Generation(
        model=model,
        n=n,
        empty=sum(not text.strip() for _, text in pairs) / n,
        looping=sum(map(is_looping, found)) / n,
        low_distinct=sum(share < LOW_DISTINCT for share in shares) / n,
        distinct2=mean(shares) if shares else None,
        samples=tuple((prompt[-_WIDTH:], text[:_WIDTH]) for prompt, text in pairs[:_SHOWN]),
    )
