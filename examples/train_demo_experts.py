"""Train the four small models that `merge-models demo` merges: a base and three experts.

    python examples/train_demo_experts.py --out merge/demo/data

Takes about five minutes on one CPU core, needs no network and no accelerator. The seeds are fixed,
so the same machine and the same torch give the same bytes.

The base sees a few hundred examples of each skill and learns them half: it knows the formats and
answers some unseen prompts. Each expert starts from the base and sees thousands of examples of one
skill, while a quarter of every batch rehearses the base's own few examples of the other two.
Without that rehearsal nets this small forget the other skills altogether, and no merge of them
works, however it is done.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from merge_models.merge.demo import SKILLS, load, score

PAD, UNKNOWN, STOP = "<pad>", "<unk>", "."
CHARACTERS = "abcdefghijklmnoprstv0123456789+:="
CONTEXT = 64
BATCH = 64
IGNORED = -100

BASE_STEPS, BASE_RATE, BASE_DECAY = 500, 1e-3, 0.1
BASE_SHARES = {"sorting": 16, "reversing": 16, "adding": 32}
BASE_EXAMPLES = {"sorting": 150, "reversing": 220, "adding": 290}

# A low rate and few steps keep an expert near the base, where averages of weights make sense.
EXPERT_RATE = 3e-4
EXPERT_STEPS = {"sorting": 200, "reversing": 200, "adding": 400}
EXPERT_EXAMPLES = 20_000
REHEARSED = 8

Examples = tuple[torch.Tensor, torch.Tensor]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; the full stop ends a text."""
    vocabulary = {token: i for i, token in enumerate([PAD, UNKNOWN, STOP, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=STOP,
        padding_side="left",
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A random model of the demo's architecture."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=cast(int, tokenizer.eos_token_id),
            pad_token_id=cast(int, tokenizer.pad_token_id),
        )
    )
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def examples(tokenizer: PreTrainedTokenizerBase, name: str, n: int) -> Examples:
    """Tokens and labels of `n` training examples; only the answer is to be predicted."""
    skill = SKILLS[name]
    prompts = list(islice(skill.prompts("train", held_out=False), n))
    texts = [prompt + skill.answer(prompt) for prompt in prompts]
    tokens = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    labels = tokens.masked_fill(tokens == tokenizer.pad_token_id, IGNORED)
    labels[:, : len(prompts[0])] = IGNORED
    return tokens, labels


def train(
    model: LlamaForCausalLM,
    data: dict[str, Examples],
    shares: dict[str, int],
    *,
    steps: int,
    rate: float,
    decay: float = 0.0,
) -> None:
    """AdamW on batches of `shares` examples of each skill; the rate falls to zero at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    warm_up, cool_down = 20, 0.3 * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / warm_up, (steps - i) / cool_down)
    )
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        for name, share in shares.items():
            tokens, labels = data[name]
            rows = torch.randint(len(tokens), (share,), generator=generator)
            logits = model(input_ids=tokens[rows]).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), labels[rows, 1:].flatten())
            (loss * share / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a folder that transformers loads, weights in bfloat16."""
    cast(torch.nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(folder)
    # A fresh tokenizer: one that has padded a batch writes that padding into its file.
    character_tokenizer().save_pretrained(folder)
    # transformers 5 writes its own name of this class, which transformers 4 does not know.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Train, save and score all four models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the four model folders")
    out: Path = parser.parse_args().out

    # The order of additions, and so the bytes, depend on the number of threads.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    logging.disable_progress_bar()
    start = time.monotonic()

    tokenizer = character_tokenizer()
    few = {name: examples(tokenizer, name, n) for name, n in BASE_EXAMPLES.items()}
    model = new_model(tokenizer)
    train(model, few, BASE_SHARES, steps=BASE_STEPS, rate=BASE_RATE, decay=BASE_DECAY)
    base = {key: value.clone() for key, value in model.state_dict().items()}
    save(model, out / "base")

    for name in SKILLS:
        model = new_model(tokenizer)
        model.load_state_dict(base)
        shares = dict.fromkeys(SKILLS, REHEARSED)
        shares[name] = BATCH - sum(shares.values()) + REHEARSED
        data = few | {name: examples(tokenizer, name, EXPERT_EXAMPLES)}
        train(model, data, shares, steps=EXPERT_STEPS[name], rate=EXPERT_RATE)
        save(model, out / name)

    print(f"{'':10}" + "".join(f"{name:>10}" for name in SKILLS))
    for name in ("base", *SKILLS):
        scores = score(*load(out / name))
        print(f"{name:10}" + "".join(f"{scores[skill]:10.2f}" for skill in SKILLS))
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
