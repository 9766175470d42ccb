"""Questions from a JSONL file, one JSON object a line; two kinds of tasks, told apart by ``choices``.

========== ==================================================================================================
field      meaning
========== ==================================================================================================
prompt     what the model reads; a choice or the answer follows it as it stands, spaces included
question   instead of ``prompt``: the model reads ``Question: ...\\nAnswer:``, and a space before each choice
choices    the answers to choose from (multiple choice); without it, the model writes its answer (exact match)
answer     multiple choice: place of the right choice, from 0, or its text; exact match: the right text
task       name of the skill [default: the file's name]
========== ==================================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from merge_models.evals.inputs.jsonl import Row, read_rows
from merge_models.merge.errors import MergeError, printable

MAX_CHOICES = 64
MAX_TASKS = 200


@dataclass(frozen=True)
class Choice:
    """A multiple-choice item: ``choices`` follow ``prompt`` directly; ``right`` is a place among them."""

    row: Row
    prompt: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Exact:
    """An item that is right when the model's greedy text begins with ``answer``."""

    row: Row
    prompt: str
    answer: str


Item = Choice | Exact


def read_tasks(files: Iterable[str | os.PathLike[str]], limit: int | None = None) -> dict[str, list[Item]]:
    """Returns the items of each task, in the files' order, at most ``limit`` of each.

    Raises:
        MergeError: a file cannot be read, a field is missing or wrong, or a task mixes both kinds.
    """
    tasks: dict[str, list[Item]] = {}
    for file in files:
        for row in read_rows(file):
            name, item = printable(row.optional("task", Path(file).stem), 60), _item(row)
            items = tasks.setdefault(name, [])
            if len(tasks) > MAX_TASKS:
                raise row.error(f"is of task {MAX_TASKS + 1}; give at most {MAX_TASKS} tasks")
            if items and type(items[0]) is not type(item):
                raise row.error(f"task '{name}' has items with and without 'choices'; give each kind a task")
            if limit is None or len(items) < limit:
                items.append(item)
    return tasks


def _item(row: Row) -> Item:
    asked = "question" in row.fields and "prompt" not in row.fields
    text = row.text("prompt", "question")
    prompt = f"Question: {text}\nAnswer:" if asked else text
    if "choices" not in row.fields:
        return Exact(row, prompt, row.text("answer"))
    choices = row.texts("choices")
    if not 2 <= len(choices) <= MAX_CHOICES or len(set(choices)) < len(choices):
        raise row.error(f"'choices' must hold 2 to {MAX_CHOICES} different texts")
    right = _right(row, choices)
    return Choice(row, prompt, tuple(f" {c}" for c in choices) if asked else choices, right)


def _right(row: Row, choices: tuple[str, ...]) -> int:
    answer = row.fields.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    raise row.error(
        f"'answer' must be the text of a choice, or its place from 0 to {len(choices) - 1},"
        f" not {printable(repr(answer), 60)}"
    )


def task_conflict(name: str) -> MergeError:
    """Returns the error for a task that has the name of a calibration domain or of the harness's task."""
    return MergeError(f"two tasks are called '{name}'; give the items in the file another 'task'")
