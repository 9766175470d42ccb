"""Three skills that a tiny language model learns, and how well a model has them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = "abcdefghijklmnop"
STOP = "."


@dataclass(frozen=True)
class Skill:
    """A prompt such as `sort:dbca=` and its one right answer, `abcd.`."""

    name: str
    prefix: str
    draw: Callable[[Random], str]
    solve: Callable[[str], str]

    def answer(self, prompt: str) -> str:
        """Returns the right completion of `prompt`, stop sign included."""
        return self.solve(prompt.removeprefix(f"{self.prefix}:").removesuffix("=")) + STOP

    def prompts(self, seed: str, *, held_out: bool) -> Iterator[str]:
        """Returns endless random prompts of one side of the split, the same for the same seed."""
        rng = Random(f"{self.name} {seed}")
        while True:
            prompt = f"{self.prefix}:{self.draw(rng)}="
            if is_held_out(prompt) == held_out:
                yield prompt


def is_held_out(prompt: str) -> bool:
    """Returns whether training never sees `prompt`: one in ten, by its hash.

    Anagrams share a side, so that having seen `45+27` does not help with `27+45`.
    """
    return hashlib.sha256("".join(sorted(prompt)).encode()).digest()[0] % 10 == 0


def _ten_letters(rng: Random) -> str:
    return "".join(rng.choices(LETTERS, k=10))


def _twelve_letters(rng: Random) -> str:
    return "".join(rng.choices(LETTERS, k=12))


def _two_numbers(rng: Random) -> str:
    return f"{rng.randint(10, 99)}+{rng.randint(10, 99)}"


SKILLS = {
    skill.name: skill
    for skill in (
        Skill("sorting", "sort", _ten_letters, lambda text: "".join(sorted(text))),
        Skill("reversing", "rev", _twelve_letters, lambda text: text[::-1]),
        Skill("adding", "add", _two_numbers, lambda text: str(sum(map(int, text.split("+"))))),
    )
}


def held_out(skill: str, n: int) -> list[str]:
    """Returns `n` prompts that no training has seen, always the same ones."""
    return list(islice(SKILLS[skill].prompts("score", held_out=True), n))


def solved(skill: str, n: int) -> list[str]:
    """Returns `n` held-out prompts with their answers, none of which is scored: text to measure activations
    on."""
    asked = set(held_out(skill, 200))
    prompts = (p for p in SKILLS[skill].prompts("measure", held_out=True) if p not in asked)
    return [prompt + SKILLS[skill].answer(prompt) for prompt in islice(prompts, n)]


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int
) -> list[str]:
    """Returns greedy text of `length` tokens after each prompt; the prompts must be equally long."""
    tokens = torch.tensor(tokenizer(prompts)["input_ids"])
    cache = None
    out: list[torch.Tensor] = []
    with torch.inference_mode():
        for _ in range(length):
            step = model(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            tokens = step.logits[:, -1:].argmax(-1)
            out.append(tokens)
    return tokenizer.batch_decode(torch.cat(out, 1))


def score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = 100) -> dict[str, float]:
    """Returns share of `n` held-out prompts of each skill that the model answers exactly."""
    scores = {}
    for name, skill in SKILLS.items():
        prompts = held_out(name, n)
        answers = [skill.answer(prompt) for prompt in prompts]
        texts = complete(model, tokenizer, prompts, max(map(len, answers)))
        hits = sum(text.startswith(a) for text, a in zip(texts, answers, strict=True))
        scores[name] = hits / n
    return scores


def demo_folder(name: str) -> Path:
    """Returns the packaged model folder of `base`, `sorting`, `reversing` or `adding`."""
    return Path(__file__).parent / "data" / name


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the model, in float32 whatever its storage, and the tokenizer of a local folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.float().eval(), tokenizer
