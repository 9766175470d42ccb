"""Small trained language models to merge: two architectures, near and far fine-tunes, independent
initialisations.

Languages are made up: a *language* is a seeded Markov grammar over words, so its text never runs out, its
entropy is known to be far from zero and far from uniform, and a few seconds of training learn it. A *family*
is a base that has
seen all languages a little, experts that went on with one each, and the relations that a merge may meet in
the wild: a second run of an expert, a far fine-tune, an independent initialisation, a permuted copy.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ("<pad>", "<unk>", "\n")
CONTEXT = 64
LANGUAGES: tuple[str, ...] = ("red", "green", "blue", "white")
BASE_STEPS = {"llama": 300, "gpt2": 900}
"""GPT-2, without rotary positions, learns the same languages to the same loss more slowly."""


class Language:
    """Text of one language: sentences of words that follow each other with few choices.

    Args:
        name: seeds the grammar; equal names are equal languages.
    """

    def __init__(self, name: str) -> None:
        rng = random.Random(f"language {name}")
        letters = rng.sample(LETTERS, 12)
        self.words = ["".join(rng.choices(letters, k=rng.randint(2, 5))) for _ in range(40)]
        self.next = {word: rng.sample(self.words, 4) for word in self.words}

    def text(self, seed: str, characters: int) -> str:
        """``characters`` of text; equal seeds give equal text."""
        rng = random.Random(f"text {seed}")
        return "".join(itertools.islice(self._letters(rng), characters))

    def _letters(self, rng: random.Random) -> Iterator[str]:
        word = rng.choice(self.words)
        while True:
            yield from word
            yield "\n" if rng.random() < 0.08 else " "
            word = rng.choices(self.next[word], weights=(8, 4, 2, 1))[0]


def tokenizer() -> Any:
    """One token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, " ", *LETTERS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="\n",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def batch(language: str, seed: str, rows: int, encode: Any) -> Tensor:
    """Token ids [rows, CONTEXT] of a language's text."""
    text = Language(language).text(seed, rows * CONTEXT)
    return torch.tensor(encode(text)["input_ids"]).reshape(rows, CONTEXT)


def new_model(family: str, seed: int, vocabulary: int) -> Any:
    """A random model: ``llama`` (RMS norm, gated MLP, grouped attention) or ``gpt2`` (layer norm, biases)."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=CONTEXT,
                n_embd=64,
                n_layer=4,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=2,
                eos_token_id=2,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=2,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def train(model: Any, languages: dict[str, int], seed: str, *, steps: int, rate: float) -> Any:
    """AdamW on batches of ``languages`` rows each; the learning rate falls linearly to zero."""
    encode = tokenizer()
    pool = {name: batch(name, f"train {seed}", 2000, encode) for name in languages}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 20) * (1 - i / steps)
    )
    generator = torch.Generator().manual_seed(len(seed))
    model.train()
    for _ in range(steps):
        rows = [
            pool[name][torch.randint(len(pool[name]), (n,), generator=generator)]
            for name, n in languages.items()
        ]
        tokens = torch.cat(rows)
        logits = model(input_ids=tokens).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def save(model: Any, folder: Path) -> None:
    """A folder that transformers loads."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_family(family: str, folder: Path, seed: int = 0) -> dict[str, Path]:
    """Trains (once; kept in ``folder``) a family's models; returns their folders by name.

    Another ``seed`` gives other nets: other initialisations, trained on other text of the same languages.
    """
    names = ("base", *LANGUAGES, "again", "far", "farther", "stranger")
    folders = {name: folder / f"{family}-{seed}" / name for name in names}
    if all((path / "model.safetensors").is_file() for path in folders.values()):
        return folders
    vocabulary = len(tokenizer())
    mix = dict.fromkeys(LANGUAGES, 6)
    train_base = {"steps": BASE_STEPS[family], "rate": 3e-3}
    base = train(new_model(family, 2 * seed, vocabulary), mix, f"base {seed}", **train_base)
    save(base, folders["base"])
    start = {key: value.clone() for key, value in base.state_dict().items()}

    def tune(name: str, languages: dict[str, int], steps: int, rate: float) -> None:
        model = new_model(family, 2 * seed, vocabulary)
        model.load_state_dict(start)
        save(train(model, languages, f"{name} {seed}", steps=steps, rate=rate), folders[name])

    for language in LANGUAGES:
        rest = {other: 2 for other in LANGUAGES if other != language}
        tune(language, {language: 18} | rest, 120, 5e-4)
    tune("again", {"red": 18, "green": 2, "blue": 2, "white": 2}, 120, 5e-4)
    tune("far", {"green": 24}, 300, 3e-3)
    tune("farther", {"blue": 24}, 500, 1e-2)
    save(
        train(new_model(family, 2 * seed + 1, vocabulary), mix, f"stranger {seed}", **train_base),
        folders["stranger"],
    )
    return folders


@torch.inference_mode()
def losses(model: Any, rows: int = 96) -> dict[str, float]:
    """Held-out next-token loss in nats, by language."""
    encode = tokenizer()
    out = {}
    for name in LANGUAGES:
        tokens = batch(name, "held out", rows, encode)
        logits = model(input_ids=tokens).logits[:, :-1].double()
        out[name] = float(cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    return out
