"""Multiple choice by likelihood."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from merge_models.evals.measures.tasks.choice import choose, mark
from merge_models.evals.measures.tasks.items import Choice, read_tasks
from merge_models.merge.errors import MergeError
from tests.evals.measures.tasks.models import (
    VOCABULARY,
    Broken,
    Copier,
    Letters,
    Model,
    Summer,
    reference,
)


def choice(prompt: str, choices: Sequence[str], right: int, tmp_path: Path) -> Choice:
    file = tmp_path / "choice.jsonl"
    file.write_text(json.dumps({"prompt": prompt, "choices": list(choices), "answer": right}))
    (item,) = read_tasks([file])["choice"]
    assert isinstance(item, Choice)
    return item


def test_choices_equal_a_float64_reference(tmp_path: Path) -> None:
    model, tokenizer = Summer(), Letters(opening=(48,))
    choices = ["one", "the other", "x"]
    prompt = tokenizer("what is it?")["input_ids"]
    sums = []
    for text in choices:
        ids = [*prompt, *tokenizer(text, False)["input_ids"]]
        sums.append(reference(model, ids)[len(prompt) - 1 :].sum())
    for right in range(3):
        marks = choose(model, tokenizer, [choice("what is it?", choices, right, tmp_path)], 512)
        assert marks.plain[0] == float(np.argmax(sums) == right)
        assert marks.normalised[0] == float(np.argmax(np.array(sums) / [3, 9, 1]) == right)


def test_a_uniform_model_answers_by_chance_and_prefers_short_choices(tmp_path: Path) -> None:
    equal = choose(Model(), Letters(), [choice("q", ["ab", "cd", "ef", "gh"], 2, tmp_path)], 99)
    assert (equal.plain[0], equal.normalised[0]) == (0.25, 0.25)
    unequal = choose(Model(), Letters(), [choice("q", ["abcd", "cd"], 0, tmp_path)], 99)
    assert (unequal.plain[0], unequal.normalised[0]) == (0.0, 0.5)


def test_a_copier_answers_what_repeats(tmp_path: Path) -> None:
    items = [choice("ba", ["aaa", "bbb"], 0, tmp_path), choice("ab", ["aaa", "bbb"], 1, tmp_path)]
    assert choose(Copier(), Letters(), items, 99).plain.tolist() == [1.0, 1.0]


def test_a_token_across_the_border_is_scored_for_every_choice(tmp_path: Path) -> None:
    """``ef`` is one token, so choice ``fg`` has no border with the prompt; both are scored behind ``d``."""
    model, tokenizer = Summer(), Letters(joined="ef")
    item = choice("cde", ["fg", "xy"], 0, tmp_path)
    sums = [reference(model, tokenizer("cde" + text)["input_ids"])[1:].sum() for text in item.choices]
    assert choose(model, tokenizer, [item], 99).plain[0] == float(sums[0] > sums[1])
    flipped = choice("cde", ["fg", "xy"], 1, tmp_path)
    assert choose(model, tokenizer, [flipped], 99).plain[0] == float(sums[1] > sums[0])
    assert tokenizer("cdefg")["input_ids"][2] == VOCABULARY - 1


def test_long_prompts_lose_their_beginning(tmp_path: Path) -> None:
    model, tokenizer = Summer(), Letters()
    prompt, choices = "abcdefghij" * 5, ["kl", "mn"]
    sums = []
    for text in choices:
        ids = tokenizer(prompt + text)["input_ids"][-16:]
        sums.append(reference(model, ids)[-2:].sum())
    found = choose(model, tokenizer, [choice(prompt, choices, 0, tmp_path)], 16)
    assert found.plain[0] == float(sums[0] > sums[1])
    with pytest.raises(MergeError, match="longer than the model's context of 4"):
        choose(model, tokenizer, [choice(prompt, ["abcdefgh", "b"], 0, tmp_path)], 4)


def test_nan_is_never_right(tmp_path: Path) -> None:
    marks = choose(Broken(), Letters(), [choice("q", ["a", "b"], 0, tmp_path)], 99)
    assert (marks.plain[0], marks.normalised[0]) == (0.0, 0.0)
    assert mark(np.array([-np.inf, -1.0]), 1) == 1.0
