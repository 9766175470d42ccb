"""Scores on tasks, and what the models write."""

from __future__ import annotations

from merge_models.evals.diagnostics.record import Estimate, Record
from merge_models.evals.schema.derived import with_diagnostics


class TaskScore(Record):
    """One model's score on one task.

    Attributes:
        task: its name (a domain for perplexity, a JSONL's ``task`` field for multiple choice); also the
        skill's.
        metric: ``perplexity`` (lower is better), ``accuracy`` (by likelihood), ``accuracy per byte`` (by
            likelihood over the choice's length), ``exact match``, or what the external harness calls it.
        model: name of the model; ``n``: items or tokens scored.
        score: with a bootstrap interval over blocks of tokens, for shares Wilson's interval, for the harness
            1.96 of its standard errors.
    """

    task: str
    metric: str
    higher_is_better: bool
    model: str
    score: Estimate
    n: int


class Recovery(Record):
    """How much of the best parent's skill the merge kept, one task.

    Attributes:
        fraction: (merge - reference) / (best parent - reference), of logarithms for perplexity; the reference
            is the base where there is one, else the worst parent. None where the best parent does not beat
            the reference beyond chance.
        low, high: the fraction's 95 % interval, by a bootstrap over the same items for all three.
    """

    task: str
    metric: str
    best_parent: str
    reference: str
    fraction: float | None
    low: float | None = None
    high: float | None = None


class _Continued(Record):
    model: str
    n: int


class Generation(with_diagnostics("text", _Continued)):
    """Greedy continuations of calibration prompts: signs of degenerate text.

    Attributes:
        model: whose; ``n``: continuations.
        samples: a few continuations, for the reader.
    """

    samples: tuple[tuple[str, str], ...] = ()


class TaskDiagnosis(Record):
    """Scores of merge, parents and base; the mean recovery never stands without the minimum."""

    scores: tuple[TaskScore, ...] = ()
    recovery: tuple[Recovery, ...] = ()
    mean_recovery: float | None = None
    least_recovery: float | None = None
    least_recovered: str | None = None
    generation: tuple[Generation, ...] = ()
