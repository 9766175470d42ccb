"""What a model's greedy continuations look like: the signs of degenerate text, counted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from merge_models.evals.diagnostics.registry import at
from merge_models.evals.diagnostics.tasks.degenerate import Continuation
from merge_models.evals.schema import Generation

_SHOWN, _WIDTH = 4, 240


def count_degenerate(model: str, pairs: Sequence[tuple[str, str]]) -> Generation:
    """Returns the means over (prompt, continuation) pairs; the first few are kept for the reader.

    A diagnostic that is not defined of any continuation is None.
    """
    written = [Continuation(prompt, text) for prompt, text in pairs]
    fields: dict[str, Any] = {}
    for diagnostic in at("text"):
        numbers = [number for number in map(diagnostic.measure, written) if number is not None]
        fields[diagnostic.key] = mean(numbers) if numbers else None
    return Generation(
        model=model,
        n=len(pairs),
        samples=tuple((one.prompt[-_WIDTH:], one.text[:_WIDTH]) for one in written[:_SHOWN]),
        **fields,
    )
