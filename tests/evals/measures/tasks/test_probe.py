"""Task scores: known answers, float64 references, and the demo's experts as real models."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from merge_models.evals.diagnostics.tasks.degenerate import distinct2, is_looping, words
from merge_models.evals.inputs.calibration import calibration_batches
from merge_models.evals.inputs.models import open_model
from merge_models.evals.measures.tasks import likelihood
from merge_models.evals.measures.tasks.choice import choose, mark
from merge_models.evals.measures.tasks.degenerate import count_degenerate
from merge_models.evals.measures.tasks.exact import is_right
from merge_models.evals.measures.tasks.greedy import continuations
from merge_models.evals.measures.tasks.harness import run_harness
from merge_models.evals.measures.tasks.items import Choice, read_tasks
from merge_models.evals.measures.tasks.likelihood import log_likelihoods, windows
from merge_models.evals.measures.tasks.perplexity import perplexity, perplexity_texts
from merge_models.evals.measures.tasks.probe import TaskProbe
from merge_models.evals.measures.tasks.resample import Marks, recovery, wilson
from merge_models.evals.measures.tasks.settings import TaskSettings
from merge_models.evals.schema import ModelRef
from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out, score
from merge_models.merge.errors import MergeError

VOCABULARY = 50


class Model(nn.Module):
    """A causal model of the last ``reach`` tokens only, given as a function from them to logits."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocabulary)
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.calls.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=self.logits(input_ids))

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Uniform."""
        return torch.zeros(*ids.shape, self.config.vocab_size)


class Copier(Model):
    """Says the token that it reads, with certainty."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return 1e4 * nn.functional.one_hot(ids, self.config.vocab_size).float()


class Summer(Model):
    """Logits depend on the sum of all tokens so far, so context matters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(101, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids.cumsum(1) % 101]


class Broken(Model):
    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.full((*ids.shape, self.config.vocab_size), math.nan)


class Letters:
    """A tokenizer of one id a character; pairs in ``joined`` become one token, wherever they stand."""

    unk_token_id = eos_token_id = None
    model_max_length = int(1e30)

    def __init__(self, joined: str = "", opening: Sequence[int] = ()) -> None:
        self.joined, self.opening = joined, list(opening)

    def __call__(self, text: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = []
        while text:
            size = 2 if self.joined and text.startswith(self.joined) else 1
            ids.append(VOCABULARY - 1 if size == 2 else ord(text[0]) % 47)
            text = text[size:]
        return {"input_ids": [*self.opening, *ids] if add_special_tokens else ids}


def reference(model: Summer, text: Sequence[int], start: int = 0) -> np.ndarray:
    """Float64 log-likelihoods of a text's tokens but the first, with all tokens from ``start`` as context."""
    out = []
    for place in range(start + 1, len(text)):
        logits = model.table.double()[sum(text[start:place]) % 101]
        out.append(float(torch.log_softmax(logits, -1)[text[place]]))
    return np.array(out)


def text_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


# Windows and likelihoods


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 16, 31, 64])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (64, 32), (2, 1)])
def test_windows_score_every_token_but_the_first_once(length: int, window: int, stride: int) -> None:
    found = windows(length, window, stride)
    scored = [place for part in found for place in range(part.scored, part.stop)]
    assert scored == list(range(1, length))
    for part in found:
        assert part.start < part.scored and part.stop - part.start <= window
        context = part.scored - part.start
        assert part.start == 0 or context >= max(1, window - stride)


def test_a_window_as_long_as_its_stride_gives_each_token_a_context() -> None:
    """Without overlap a window's first token would have none; it is scored at the end of the one before."""
    assert [(w.start, w.scored, w.stop) for w in windows(6, 2, 1)] == [(i, i + 1, i + 2) for i in range(5)]


def test_likelihoods_equal_a_float64_reference_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Summer()
    texts = [text_of(length, length) for length in (40, 3, 17, 2, 1, 40, 25)]
    found = log_likelihoods(model, texts, 64, 32)
    for text, values in zip(texts, found, strict=True):
        np.testing.assert_allclose(values, reference(model, text), rtol=0, atol=1e-6)
    batches = len(model.calls)
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 1)
    for one, other in zip(found, log_likelihoods(model, texts, 64, 32), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(model.calls) - batches == 6  # one text at a time, the text of one token never


def test_a_sliding_window_sees_what_it_should() -> None:
    model, text = Summer(), text_of(50, 1)
    (found,) = log_likelihoods(model, [text], 16, 8)
    parts = [
        reference(model, text[: part.stop], part.start)[part.scored - part.start - 1 :]
        for part in windows(50, 16, 8)
    ]
    expected = np.concatenate(parts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    whole = reference(model, text)
    np.testing.assert_allclose(found[:15], whole[:15], rtol=0, atol=1e-6)
    assert np.abs(found[15:] - whole[15:]).max() > 0.1  # the window forgets


# Perplexity


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    marks = perplexity(Model(), [text_of(200, 0), text_of(77, 1)], 64, 32)
    assert marks.count.sum() == 199 + 76
    assert float(marks.value()) == pytest.approx(VOCABULARY, rel=1e-6)
    estimate = marks.estimate(seed=0)
    assert estimate.low == pytest.approx(estimate.high, rel=1e-6)


def test_a_copier_has_perplexity_one_on_repetition() -> None:
    assert float(perplexity(Copier(), [[7] * 100], 16, 8).value()) == pytest.approx(1.0)


def test_perplexity_equals_the_whole_context_reference() -> None:
    model, texts = Summer(), [text_of(150, 5), text_of(90, 6)]
    expected = np.exp(-np.concatenate([reference(model, text) for text in texts]).mean())
    assert float(perplexity(model, texts, 512, 256).value()) == pytest.approx(expected, rel=1e-6)


def test_perplexity_texts_share_the_tokens_and_keep_the_opening_token() -> None:
    documents = {"a": ["x" * 30, "y" * 30], "b": ["z" * 500]}
    texts = perplexity_texts(documents, Letters(opening=(48,)), 100, seed=0)
    assert [sum(map(len, of_domain)) for of_domain in texts.values()] == [50, 50]
    assert all(text[0] == 48 for of_domain in texts.values() for text in of_domain)
    assert texts == perplexity_texts(documents, Letters(opening=(48,)), 100, seed=0)


# Multiple choice


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


# Exact match, continuations, degenerate text


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("72.", "72", True),
        ("72. and more", "72.", True),
        ("721", "72", False),
        ("7", "72", False),
        ("  Paris\n", "Paris", True),
        ("Parisian", "Paris", False),
        ("paris", "Paris", False),
        ("", "72", False),
        ("72</s>", "72", True),
        ("abc.def", "abc.", True),
        ("東京都", "東京", False),
    ],
)
def test_exact_match(text: str, wanted: str, right: bool) -> None:
    assert is_right(text, wanted) is right


def test_greedy_goes_on_until_a_stop() -> None:
    class Counter(Model):
        def logits(self, ids: torch.Tensor) -> torch.Tensor:
            return 9.0 * nn.functional.one_hot((ids + 1) % VOCABULARY, VOCABULARY).float()

    prompts = [[1, 2], [5], [40, 41], [48]]
    assert continuations(Counter(), prompts, 3, {9}) == [[3, 4, 5], [6, 7, 8], [42, 43, 44], [49, 0, 1]]
    assert continuations(Counter(), prompts, 3, {4, 7}) == [[3, 4], [6, 7], [42, 43, 44], [49, 0, 1]]
    assert continuations(Broken(), prompts, 3, set()) == [[], [], [], []]


@pytest.mark.parametrize(
    ("text", "looping", "low"),
    [
        ("The cat sat on the mat and looked out.", False, False),
        ("no no no", True, False),
        ("on and on and on and on", True, True),
        ("a b c d a b c e a b c", True, False),
        ("我们去学校学习新的知识。", False, False),
        ("好好好好好好", True, True),
        ("......", True, True),
        ("x = f(x)\ny = g(y)\nz = h(z)", False, False),
        ("word", False, False),
        ("", False, False),
    ],
)
def test_loops_and_low_variety_are_counted(text: str, looping: bool, low: bool) -> None:
    found = words(text)
    share = distinct2(found)
    assert is_looping(found) is looping
    assert (share is not None and share < 0.5) is low


def test_degenerate_shares() -> None:
    pairs = [("p", ""), ("p", " \n"), ("p", "la la la la la la"), ("p", "one two three four")]
    found = count_degenerate("m", pairs)
    assert (found.n, found.empty, found.looping, found.low_distinct) == (4, 0.5, 0.25, 0.25)
    assert found.distinct2 == pytest.approx((0.2 + 1.0) / 2)
    assert found.samples[2] == ("p", "la la la la la la")


# Intervals and recovery


def items(*right: float) -> Marks:
    return Marks(np.array(right), np.ones(len(right)), "accuracy")


def test_wilson_interval_is_the_textbook_one() -> None:
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson(1.0, 60)[0] == pytest.approx(60 / (60 + 1.959964**2), abs=1e-6)
    assert wilson(0.0, 10)[0] == 0.0 and wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_recovery_is_the_share_of_the_gain() -> None:
    best, base = items(*[1.0] * 90 + [0.0] * 10), items(*[0.0] * 90 + [1.0] * 10)
    for share in (0.0, 0.5, 1.0):
        merge = items(*[float(i < 10 + share * 80) for i in range(100)])
        kept = recovery(merge, best, base, seed=0)
        assert kept is not None and kept.low is not None and kept.high is not None
        assert kept.value == pytest.approx(share)
        assert kept.low <= kept.value <= kept.high and kept.high - kept.low < 0.5


def test_recovery_of_perplexity_is_on_the_log_scale() -> None:
    count = np.full(40, 64.0)
    noise = np.random.default_rng(0).normal(0, 0.1, 40)
    best, base, merge = (
        Marks((mean + noise) * 64, count, "perplexity", higher_is_better=False) for mean in (2.0, 4.0, 3.0)
    )
    kept = recovery(merge, best, base, seed=0)
    assert kept is not None and kept.value == pytest.approx(0.5)
    assert float(base.value()) == pytest.approx(np.exp(4.0 + noise.mean()))


def test_no_recovery_is_told_of_a_gain_that_is_chance() -> None:
    rng = np.random.default_rng(0)
    one, other = items(*rng.integers(0, 2, 30)), items(*rng.integers(0, 2, 30))
    better, worse = sorted((one, other), key=lambda m: -float(m.value()))
    assert recovery(one, better, worse, seed=0) is None
    assert recovery(one, one, one, seed=0) is None


# Files


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


def test_a_task_named_as_a_domain_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "code.jsonl"
    file.write_text('{"prompt": "p", "answer": "a"}')
    tokenizer: Any = Letters()
    with pytest.raises(MergeError, match="two tasks are called 'code'"):
        TaskProbe(calibration_batches(tokenizer), TaskSettings(files=[file]))


# Real models: the demo's experts


def observe(probe: TaskProbe, *names: tuple[str, str]) -> None:
    torch.set_num_threads(1)
    for name, role in names:
        with open_model(demo_folder(name)) as loaded:
            ref = ModelRef(name=f"{name} as {role}", role=role)  # type: ignore[arg-type]
            probe.observe(ref, loaded.model, loaded.tokenizer)


ITEMS = 16


@pytest.fixture(scope="module")
def skills_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("skills") / "skills.jsonl"
    rows = [
        {"task": name, "prompt": prompt, "answer": skill.answer(prompt)}
        for name, skill in SKILLS.items()
        for prompt in held_out(name, ITEMS)
    ]
    rows += [
        {
            "task": "sums",
            "prompt": prompt,
            "choices": [SKILLS["adding"].answer(prompt), "1.", "zzz."],
            "answer": 0,
        }
        for prompt in held_out("adding", 20)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_the_experts_score_as_the_demo_says(skills_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompts.jsonl"
    rows = [
        {"text": prompt + skill.answer(prompt), "domain": f"text {name}"}
        for name, skill in SKILLS.items()
        for prompt in held_out(name, 60)
    ]
    text.write_text("\n".join(map(json.dumps, rows)))
    with open_model(demo_folder("base")) as loaded:
        batches = calibration_batches(loaded.tokenizer, source=text, tokens=1536, length=32)  # type: ignore[arg-type]
    probe = TaskProbe(
        batches,
        TaskSettings(files=[skills_file], perplexity_tokens=1800, continuations=6, new_tokens=16),
        seed=1,
    )
    observe(probe, ("sorting", "parent"), ("adding", "parent"), ("base", "base"), ("adding", "merge"))
    parents = [ModelRef(name=f"{name} as parent", role="parent") for name in ("sorting", "adding")]
    found = probe.finish(parents, ModelRef(name="base as base", role="base"))

    scores = {(s.model, s.task, s.metric): s for s in found.scores}
    for name in ("sorting", "adding"):
        with open_model(demo_folder(name)) as loaded:
            expected = score(loaded.model, loaded.tokenizer, ITEMS)  # type: ignore[arg-type]
        for skill, share in expected.items():
            assert scores[f"{name} as parent", skill, "exact match"].score.value == pytest.approx(share)
    assert scores["adding as parent", "sums", "accuracy"].score.value >= 0.95
    for domain in ("text sorting", "text adding"):
        twin, parent = (scores[f"adding as {role}", domain, "perplexity"] for role in ("merge", "parent"))
        assert (twin.score, twin.n) == (parent.score, parent.n)
    recoveries = {(r.task, r.metric): r for r in found.recovery}
    assert recoveries["adding", "exact match"].fraction == pytest.approx(1.0)
    assert recoveries["adding", "exact match"].best_parent == "adding as parent"
    lost = recoveries["sorting", "exact match"]
    assert lost.fraction is not None and lost.fraction < 0.3
    assert recoveries["reversing", "exact match"].fraction is None  # no parent has it
    assert found.least_recovery is not None and found.mean_recovery is not None
    assert found.least_recovery <= found.mean_recovery <= 1.01
    assert found.least_recovered is not None
    assert [g.model for g in found.generation] == [
        "sorting as parent", "adding as parent", "base as base", "adding as merge"
    ]  # fmt: skip
    assert found.model_validate_json(found.model_dump_json()) == found


def test_perplexity_of_a_real_model_equals_float64(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with open_model(demo_folder("sorting"), dtype=torch.float64) as loaded:
        model, tokenizer = loaded.model, loaded.tokenizer
        assert tokenizer is not None
        texts = [tokenizer(p + SKILLS["sorting"].answer(p))["input_ids"] for p in held_out("sorting", 2)]
        texts.append(texts[0] + texts[1])
        losses = []
        for text in texts:
            with torch.inference_mode():
                logits = model(torch.tensor([text])).logits[0, :-1]
            losses.append(nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none"))
        expected = float(torch.cat(losses).mean().exp())
        assert float(perplexity(model, texts, 64, 32).value()) == pytest.approx(expected, rel=1e-12)
    with open_model(demo_folder("sorting")) as loaded:
        assert float(perplexity(loaded.model, texts, 64, 32).value()) == pytest.approx(expected, rel=1e-5)


def test_a_model_with_nan_scores_nothing_and_crashes_nothing(skills_file: Path) -> None:
    torch.set_num_threads(1)
    with open_model(demo_folder("base")) as loaded:
        assert loaded.tokenizer is not None
        batches = calibration_batches(loaded.tokenizer, tokens=1024)
        probe = TaskProbe(batches, TaskSettings(files=[skills_file], limit=5))
        parent, merge = ModelRef(name="p", role="parent"), ModelRef(name="m", role="merge")
        probe.observe(parent, loaded.model, loaded.tokenizer)
        next(loaded.model.parameters()).data.fill_(math.nan)
        probe.observe(merge, loaded.model, loaded.tokenizer)
    found = probe.finish([parent])
    assert not [s for s in found.scores if s.model == "m" and s.metric == "perplexity"]
    assert {s.score.value for s in found.scores if s.model == "m"} == {0.0}
    assert found.generation[1].empty == 1.0 and found.generation[1].distinct2 is None


def test_models_that_predict_nothing_are_passed_over_or_refused(skills_file: Path) -> None:
    ref, module = ModelRef(name="net", role="merge"), nn.Linear(2, 2)
    probe = TaskProbe(None)
    probe.observe(ref, module, None)
    assert probe.finish([]).scores == ()
    with pytest.raises(MergeError, match="net has no tokenizer, so it answers no questions"):
        TaskProbe(None, TaskSettings(files=[skills_file])).observe(ref, module, None)


def test_the_probe_leaves_the_model_as_it_was() -> None:
    torch.set_num_threads(1)
    with open_model(demo_folder("base")) as loaded:
        assert loaded.tokenizer is not None
        before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
        batches = calibration_batches(loaded.tokenizer, tokens=1024)
        probe = TaskProbe(batches, TaskSettings(perplexity_tokens=256, continuations=4))
        probe.observe(ModelRef(name="m", role="merge"), loaded.model, loaded.tokenizer)
        assert not loaded.model.training
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor, before[name])


# The external harness


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A stand-in for lm_eval: records how it is called, and answers in its form."""
    calls: dict[str, Any] = {}

    def simple_evaluate(**settings: Any) -> dict[str, Any]:
        calls.update(settings)
        if settings["tasks"] == ["unknown_task"]:
            raise KeyError("Tasks not found: unknown_task\nsecond line")
        right = [1.0, 0.0, 1.0, 1.0]
        return {
            "results": {
                "arc": {"alias": "arc", "acc,none": 0.75, "acc_stderr,none": 0.25, "odd,none": "N/A"},
                "wiki": {"word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
                "group": {"acc,none": 0.75},
            },
            "samples": {
                "arc": [{"acc": value, "filter": "none"} for value in right],
                "wiki": [{"word_perplexity": (-30.0, 12), "filter": "none"}],
            },
            "higher_is_better": {"arc": {"acc": True}, "wiki": {"word_perplexity": False}},
        }

    package, models, adapter = ModuleType("lm_eval"), ModuleType("lm_eval.models"), ModuleType("huggingface")
    package.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    adapter.HFLM = lambda **settings: SimpleNamespace(**settings)  # type: ignore[attr-defined]
    for name, module in (
        ("lm_eval", package), ("lm_eval.models", models), ("lm_eval.models.huggingface", adapter)
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    yield calls


def test_the_harness_is_run_on_the_model_in_memory(harness: dict[str, Any]) -> None:
    model, tokenizer = object(), object()
    found = run_harness(model, tokenizer, ["arc", "wiki"], limit=4, seed=3)
    assert harness["model"].pretrained is model and harness["model"].tokenizer is tokenizer
    assert (harness["limit"], harness["random_seed"], harness["torch_random_seed"]) == (4, 3, 3)
    arc, wiki = found
    assert (arc.task, arc.metric, arc.estimate.value, arc.n, arc.higher_is_better) == (
        "arc",
        "acc",
        0.75,
        4,
        True,
    )
    assert arc.marks is not None and arc.marks.total.tolist() == [1, 0, 1, 1]
    assert (wiki.metric, wiki.estimate.value, wiki.estimate.low, wiki.higher_is_better) == (
        "word_perplexity", 12.0, None, False
    )  # fmt: skip
    assert wiki.marks is None


def test_what_the_harness_raises_is_one_clean_line(harness: dict[str, Any]) -> None:
    with pytest.raises(MergeError, match="lm-eval cannot run unknown_task .*Tasks not found") as caught:
        run_harness(None, None, ["unknown_task"], limit=None, seed=0)
    assert "\n" not in str(caught.value)
    with pytest.raises(MergeError, match="is no name of an lm-eval task"):
        TaskProbe(None, TaskSettings(lm_eval=["../task.yaml"]))


def test_without_the_harness_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MergeError, match=r'pip install "merge-models\[lm-eval\]"'):
        TaskProbe(None, TaskSettings(lm_eval=["arc_easy"]))


def test_the_real_harness_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of one's own in its form, data from a local file: sums that the adding expert knows."""
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    importlib.import_module("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    rows = [
        {"text": p, "choices": [SKILLS["adding"].answer(p), "1."], "label": 0} for p in held_out("adding", 8)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    with open_model(demo_folder("adding")) as loaded:
        found = run_harness(loaded.model, loaded.tokenizer, [task], limit=None, seed=0)
    (acc,) = [result for result in found if result.metric == "acc"]
    assert acc.estimate.value == 1.0 and acc.n == 8 and acc.marks is not None
