"""Questions from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from merge_models.evals.measures.tasks.items import Choice, read_tasks
from merge_models.evals.measures.tasks.probe import TaskProbe
from merge_models.evals.measures.tasks.settings import TaskSettings
from merge_models.merge.errors import MergeError


def test_files_are_read_by_task_and_kind(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    rows = [
        {"question": "2 + 2?", "choices": ["4", "5"], "answer": "4"},
        {"prompt": "Paris is in ", "choices": ["France", "Peru"], "answer": 0},
        {"prompt": "add:1+1=", "answer": "2.", "task": "sums"},
        {"question": "who?", "answer": "me", "task": "sums"},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    tasks = read_tasks([file])
    first, second = tasks["quiz"]
    assert isinstance(first, Choice) and isinstance(second, Choice)
    assert (first.prompt, first.choices, first.right) == ("Question: 2 + 2?\nAnswer:", (" 4", " 5"), 0)
    assert (second.prompt, second.choices, second.right) == ("Paris is in ", ("France", "Peru"), 0)
    assert [item.prompt for item in tasks["sums"]] == ["add:1+1=", "Question: who?\nAnswer:"]
    assert [len(of_task) for of_task in read_tasks([file], limit=1).values()] == [1, 1]


BAD_ROWS = [
    ({"choices": ["a", "b"], "answer": 0}, "has no field 'prompt' or 'question'"),
    ({"prompt": "p"}, "has no field 'answer'"),
    (
        {"prompt": "p", "choices": ["a", "b"]},
        "'answer' must be the text of a choice, or its place from 0 to 1",
    ),
    ({"prompt": "p", "choices": ["a", "b"], "answer": 2}, "'answer' must be the text of a choice"),
    ({"prompt": "p", "choices": ["a", "b"], "answer": True}, "'answer' must be the text of a choice"),
    (
        {"prompt": "p", "choices": ["a", "b"], "answer": "c\x1b[2J"},
        "'answer' must be the text of a choice, or its place from 0 to 1, not 'c\\x1b[2",
    ),
    ({"prompt": "p", "choices": ["a", "a"], "answer": 0}, "'choices' must hold 2 to 64 different texts"),
    ({"prompt": "p", "choices": ["a"], "answer": 0}, "'choices' must hold 2 to 64 different texts"),
    ({"prompt": "p", "choices": "ab", "answer": 0}, "'choices' must be a list of texts"),
    ({"prompt": "p", "choices": ["a", 3], "answer": 0}, "'choices'[1] must be a text, not int"),
    ({"prompt": ["p"], "answer": "a"}, "'prompt' must be a text, not list"),
    ({"prompt": "p", "answer": 3}, "'answer' must be a text, not int"),
    ({"prompt": "p", "answer": "a", "task": 3}, "'task' must be a text, not int"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_bad_rows_are_refused_by_file_and_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"prompt": "p", "answer": "a", "task": "fine"}\n' + json.dumps(row))
    with pytest.raises(MergeError) as caught:
        TaskProbe(None, TaskSettings(files=[file]))
    assert f"quiz.jsonl, line 2: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_of_both_kinds_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "quiz.jsonl"
    file.write_text('{"prompt": "p", "answer": "a"}\n{"prompt": "p", "choices": ["a", "b"], "answer": 0}')
    with pytest.raises(MergeError, match="line 2: task 'quiz' has items with and without 'choices'"):
        read_tasks([file])
