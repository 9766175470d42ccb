"""Signs of degenerate text in greedy continuations: empty, looping, or of few different words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from merge_models.evals.diagnostics.diagnostic import REQUIRED, Diagnostic, Field

LOW_DISTINCT = 0.5
"""Continuations with a smaller share of different bigrams are counted as low."""

# Scripts without spaces between words: each sign is taken for a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case; every sign of it where it has no words (a row of dots)."""
    return _WORD.findall(text.lower()) or [c for c in text if not c.isspace()]


def is_looping(spoken: Sequence[str]) -> bool:
    """Returns whether three words in a row come three times, or one word three times running."""
    trigrams = Counter(zip(spoken, spoken[1:], spoken[2:], strict=False))
    running = any(a == b == c for a, b, c in zip(spoken, spoken[1:], spoken[2:], strict=False))
    return running or max(trigrams.values(), default=0) >= 3


def distinct2(spoken: Sequence[str]) -> float | None:
    """Returns different bigrams over bigrams; None for fewer than two words."""
    bigrams = list(zip(spoken, spoken[1:], strict=False))
    return len(set(bigrams)) / len(bigrams) if bigrams else None


@dataclass(frozen=True)
class Continuation:
    """What a model wrote behind a prompt: what a diagnostic of text is given."""

    prompt: str
    text: str

    @cached_property
    def words(self) -> list[str]:
        """The words of the text."""
        return words(self.text)


def _is_empty(written: Continuation) -> float:
    return float(not written.text.strip())


def _loops(written: Continuation) -> float:
    return float(is_looping(written.words))


def _is_poor(written: Continuation) -> float:
    share = distinct2(written.words)
    return float(share is not None and share < LOW_DISTINCT)


def _distinct2(written: Continuation) -> float | None:
    return distinct2(written.words)


EMPTY = Diagnostic(
    key="empty",
    label="Empty",
    definition="Share of greedy continuations without a sign that is seen.",
    unit="share",
    depth="tasks",
    fields=(Field("empty", "Share of continuations that are empty.", ("text",), float, REQUIRED),),
    measure=_is_empty,
)

LOOPING = Diagnostic(
    key="looping",
    label="Looping",
    definition=(
        "Share of greedy continuations in which a trigram comes three times, or a word three times running."
    ),
    unit="share",
    depth="tasks",
    fields=(
        Field(
            "looping",
            "Share of continuations that repeat (a trigram three times or a word three times running).",
            ("text",),
            float,
            REQUIRED,
        ),
    ),
    measure=_loops,
)

LOW_DISTINCT_2 = Diagnostic(
    key="low_distinct",
    label="Low distinct-2",
    definition="Share of greedy continuations whose distinct-2 (unique bigrams over bigrams) is under 0.5.",
    unit="share",
    depth="tasks",
    fields=(
        Field(
            "low_distinct",
            "Share of continuations whose distinct-2 (unique bigrams over bigrams) is under 0.5.",
            ("text",),
            float,
            REQUIRED,
        ),
    ),
    measure=_is_poor,
)

DISTINCT_2 = Diagnostic(
    key="distinct2",
    label="Mean distinct-2",
    definition="Mean over greedy continuations of unique bigrams over bigrams.",
    unit="1",
    depth="tasks",
    fields=(Field("distinct2", "Mean distinct-2.", ("text",), float | None, REQUIRED),),
    measure=_distinct2,
)
