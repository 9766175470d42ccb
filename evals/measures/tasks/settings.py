"""What is scored, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from merge_models.merge.errors import MergeError


@dataclass(frozen=True)
class TaskSettings:
    """What the task probe measures beside perplexity and degenerate text.

    Attributes:
        files: JSONL files of questions (``evals.tasks.items`` says which fields they have).
        lm_eval: names of lm-evaluation-harness's tasks; needs the extra ``lm-eval``.
        limit: at most so many items of each task; None for all.
        perplexity_tokens: of the calibration text, over all its domains; 0 for no perplexity.
        window: tokens that a model sees at once when perplexity is measured, at most its context.
        stride: how far the window moves: every token but a text's first ``window`` has at least
            ``window - stride`` tokens before it.
        continuations: how many prompts from the calibration text are continued; 0 for none.
        prompt_tokens, new_tokens: of each.

    Raises:
        MergeError: the stride is no number under the window.

    >>> TaskSettings(files=["questions.jsonl"], limit=100).limit
    100
    """

    files: Sequence[str | os.PathLike[str]] = ()
    lm_eval: Sequence[str] = ()
    limit: int | None = None
    perplexity_tokens: int = 2048
    window: int = 512
    stride: int = 256
    continuations: int = 32
    prompt_tokens: int = 32
    new_tokens: int = 48

    def __post_init__(self) -> None:
        if not 0 < self.stride < self.window:
            raise MergeError(
                f"the stride ({self.stride}) must be under the window ({self.window}), and over 0"
            )
