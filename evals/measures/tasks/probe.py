"""The probe that scores each model on every task, and what follows for the merge."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from merge_models.evals.inputs.calibration import Batches
from merge_models.evals.measures.tasks.choice import choose
from merge_models.evals.measures.tasks.degenerate import count_degenerate
from merge_models.evals.measures.tasks.exact import answer
from merge_models.evals.measures.tasks.greedy import continuations, stops_of
from merge_models.evals.measures.tasks.harness import check_harness, run_harness
from merge_models.evals.measures.tasks.items import Choice, Exact, Item, read_tasks, task_conflict
from merge_models.evals.measures.tasks.likelihood import context_of
from merge_models.evals.measures.tasks.perplexity import perplexity, perplexity_texts
from merge_models.evals.measures.tasks.resample import Marks, extreme, recovery
from merge_models.evals.measures.tasks.settings import TaskSettings
from merge_models.evals.schema import (
    Generation,
    ModelRef,
    Recovery,
    TaskDiagnosis,
    TaskScore,
)
from merge_models.merge.errors import MergeError

if TYPE_CHECKING:
    from torch import nn

Key = tuple[str, str]
"""Task and metric."""


class TaskProbe:
    """Scores models on tasks, one at a time (``evals.measures.measure.Measurement``).

    Perplexity of the calibration text by domain and counters of degenerate continuations of it; multiple
    choice and exact match of the files' items; tasks of the external harness. Models that predict no next
    token (encoders, other modules) have no such scores: they are passed over, and refused where files or
    harness tasks were asked for.

    Args:
        batches: the calibration text; None for none of what needs it.
        settings: which tasks, and how much; the files are read at once.
        seed: of the order of documents and of the intervals.

    Raises:
        MergeError: a file is bad, two tasks share a name, or the harness is not installed.
    """

    def __init__(
        self, batches: Batches | None, settings: TaskSettings | None = None, *, seed: int = 0
    ) -> None:
        self._settings = settings or TaskSettings()
        self._batches = batches
        self._seed = seed
        self._items = read_tasks(self._settings.files, self._settings.limit)
        for name in self._items:
            if batches is not None and name in batches.text.domains or name in self._settings.lm_eval:
                raise task_conflict(name)
        if self._settings.lm_eval:
            check_harness(self._settings.lm_eval)
        self._marks: dict[Key, dict[str, Marks]] = {}
        self._scores: list[TaskScore] = []
        self._generation: list[Generation] = []

    def observe(self, ref: ModelRef, model: nn.Module, tokenizer: Any | None) -> None:
        """Scores one model.

        Raises:
            MergeError: an item does not fit the model, or the model predicts no tokens and files were given.
        """
        from merge_models.evals.inputs.models import kind_of

        if kind_of(model) != "causal" or tokenizer is None:
            if self._items or self._settings.lm_eval:
                lacks = "no tokenizer" if tokenizer is None else "no next-token predictions"
                raise MergeError(f"{ref.name} has {lacks}, so it answers no questions; leave the tasks out")
            return
        context = context_of(model, tokenizer)
        self._measure_perplexity(ref, model, tokenizer, context)
        self._continue_prompts(ref, model, tokenizer, context)
        for task, items in self._items.items():
            self._answer(ref, model, tokenizer, task, items, context)
        self._run_harness(ref, model, tokenizer)

    def finish(self, parents: Sequence[ModelRef], base: ModelRef | None = None) -> TaskDiagnosis:
        """Returns the scores of all models, and what the merge recovered of the best parent's.

        The reference is the base, or without one the worst parent. Recovery is asked only where the best
        parent beats the reference beyond chance.

        Args:
            parents: as observed; the merge is the observed model that is neither parent nor base.
            base: as observed, where there is one.
        """
        parts = []
        for key, marks in self._marks.items():
            row = self._recovery(key, marks, [parent.name for parent in parents], base.name if base else None)
            if row is not None:
                parts.append(row)
        told = {row.task: row.fraction for row in parts if row.fraction is not None}
        least = min(told, key=lambda task: told[task]) if told else None
        return TaskDiagnosis(
            scores=tuple(self._scores),
            recovery=tuple(parts),
            mean_recovery=mean(told.values()) if told else None,
            least_recovery=told[least] if least else None,
            least_recovered=least,
            generation=tuple(self._generation),
        )

    def _recovery(
        self, key: Key, marks: dict[str, Marks], parents: Sequence[str], base: str | None
    ) -> Recovery | None:
        of_parents = {name: marks[name] for name in parents if name in marks}
        merge = next((name for name in marks if name not in parents and name != base), None)
        if merge is None or not of_parents:
            return None
        best = extreme(of_parents, "best")
        reference = base if base in marks else extreme(of_parents, "worst")
        assert reference is not None
        kept = recovery(marks[merge], marks[best], marks[reference], self._seed)
        return Recovery(
            task=key[0],
            metric=key[1],
            best_parent=best,
            reference=reference,
            fraction=kept.value if kept else None,
            low=kept.low if kept else None,
            high=kept.high if kept else None,
        )

    def _measure_perplexity(self, ref: ModelRef, model: Any, tokenizer: Any, context: int) -> None:
        if self._batches is None or self._settings.perplexity_tokens < 1:
            return
        window = min(self._settings.window, context)
        stride = min(self._settings.stride, max(1, window // 2))
        documents = self._batches.text.domains
        texts = perplexity_texts(documents, tokenizer, self._settings.perplexity_tokens, self._seed)
        for domain, of_domain in texts.items():
            self._note(ref, domain, perplexity(model, of_domain, window, stride))

    def _continue_prompts(self, ref: ModelRef, model: Any, tokenizer: Any, context: int) -> None:
        if self._batches is None or self._settings.continuations < 1:
            return
        length = min(self._settings.prompt_tokens, self._batches.length // 2, context // 2)
        prompts = _spread([ids[:, :length].tolist() for ids in self._batches.ids.values()])
        prompts = prompts[: self._settings.continuations]
        new = min(self._settings.new_tokens, context - length)
        stops = stops_of(model, tokenizer)
        answers = continuations(model, prompts, new, stops)
        pairs = [
            (
                tokenizer.decode(prompt, skip_special_tokens=True),
                tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids, skip_special_tokens=True),
            )
            for prompt, ids in zip(prompts, answers, strict=True)
        ]
        self._generation.append(count_degenerate(ref.name, pairs))

    def _answer(
        self, ref: ModelRef, model: Any, tokenizer: Any, task: str, items: Sequence[Item], context: int
    ) -> None:
        choices = [item for item in items if isinstance(item, Choice)]
        if choices:
            marks = choose(model, tokenizer, choices, context)
            self._note(ref, task, _of_items(marks.plain, "accuracy"))
            self._note(ref, task, _of_items(marks.normalised, "accuracy per byte"), recovered=False)
            return
        exact = [item for item in items if isinstance(item, Exact)]
        self._note(ref, task, _of_items(answer(model, tokenizer, exact, context), "exact match"))

    def _run_harness(self, ref: ModelRef, model: Any, tokenizer: Any) -> None:
        if not self._settings.lm_eval:
            return
        for result in run_harness(
            model, tokenizer, self._settings.lm_eval, limit=self._settings.limit, seed=self._seed
        ):
            better = result.higher_is_better
            if better is None:
                continue
            if result.marks is not None:
                self._marks.setdefault((result.task, result.metric), {})[ref.name] = result.marks
            self._scores.append(
                TaskScore(
                    task=result.task,
                    metric=result.metric,
                    higher_is_better=better,
                    model=ref.name,
                    score=result.estimate,
                    n=result.n,
                )
            )

    def _note(self, ref: ModelRef, task: str, marks: Marks, recovered: bool = True) -> None:
        """Keeps a score, unless it is not finite: such a model has none."""
        if not marks.finite:
            return
        if recovered:
            self._marks.setdefault((task, marks.metric), {})[ref.name] = marks
        self._scores.append(
            TaskScore(
                task=task,
                metric=marks.metric,
                higher_is_better=marks.higher_is_better,
                model=ref.name,
                score=marks.estimate(self._seed),
                n=int(marks.count.sum()),
            )
        )


def _of_items(marks: Any, metric: str) -> Marks:
    import numpy as np

    return Marks(marks, np.ones(len(marks)), metric)


def _spread(groups: Sequence[Sequence[list[int]]]) -> list[list[int]]:
    """The first of each group, then the second of each, and so on."""
    longest = max(map(len, groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]
