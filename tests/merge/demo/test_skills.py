"""The demo's experts: what they ship as, what they can, and that they were asked what they never saw."""

from __future__ import annotations

import itertools

import pytest
import torch

from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out, is_held_out, score

FOLDERS = ("base", "sorting", "reversing", "adding")


def scores_of(name: str) -> dict[str, float]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder = demo_folder(name)
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    return score(model, AutoTokenizer.from_pretrained(folder), 60)


def test_the_data_are_small() -> None:
    files = [file for name in FOLDERS for file in demo_folder(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 4_000_000


@pytest.mark.parametrize("skill", SKILLS)
def test_each_expert_has_its_skill_and_the_base_lacks_it(skill: str) -> None:
    expert, base = scores_of(skill), scores_of("base")
    assert expert[skill] >= 0.9
    assert base[skill] < expert[skill] - 0.3


@pytest.mark.parametrize(
    ("prompt", "answer"), [("sort:dbca=", "abcd."), ("rev:abc=", "cba."), ("add:27+45=", "72.")]
)
def test_answers_are_right(prompt: str, answer: str) -> None:
    (skill,) = (skill for skill in SKILLS.values() if prompt.startswith(f"{skill.prefix}:"))
    assert skill.answer(prompt) == answer


@pytest.mark.parametrize("skill", SKILLS)
def test_training_never_sees_what_is_scored(skill: str) -> None:
    training = itertools.islice(SKILLS[skill].prompts("training", held_out=False), 2000)
    asked = held_out(skill, 100)
    assert not set(training) & set(asked)
    assert all(is_held_out(prompt) for prompt in asked) and asked == held_out(skill, 100)
