"""Llama-shaped bf16 checkpoints to time merges on: a base and its fine-tunes, made in a minute.

    python -m benchmarks.models --size 1b --dir DIR

Every block of a tensor is cut from one pool of Gaussians at a place of its own, so writing, not
drawing random numbers, is what takes the time. All folders are written together, a block at a time:
memory does not grow with the size. A stamp, written last, says that a set is complete; it is then
used again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

FORMAT = 1  # raised whenever the bytes that this file makes change
SHARD_BYTES = 10**9
BLOCK = 1 << 20  # elements
POOL = 1 << 22  # elements; a power of two, so that an odd stride visits every start once
STRIDE = 2654435761
STD = 0.02
STAMP = "stamp.json"


@dataclass(frozen=True)
class Shape:
    """A Llama architecture, by the numbers that its config.json has."""

    vocab: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    tied: bool


SIZES = {
    "tiny": Shape(8192, 256, 8, 688, 4, 2, tied=False),  # 10M
    "135m": Shape(49152, 576, 30, 1536, 9, 3, tied=True),  # as SmolLM2-135M
    "1b": Shape(32000, 2048, 22, 5632, 32, 4, tied=False),  # 1.1B, as TinyLlama
    "3b": Shape(128256, 3072, 28, 8192, 24, 8, tied=True),  # 3.2B, as Llama-3.2-3B
}

Tensors = dict[str, tuple[int, ...]]


def make(root: Path, size: str, parents: int = 3) -> tuple[Path, list[Path]]:
    """Make under `root`, or find there, a base and its fine-tunes; returns their folders.

    The base has N(0, 0.02) weights, and norms around 1. Fine-tune i adds to each block a delta of a
    relative size between 1e-3 and 1e-2, and rounds to bf16.
    """
    found = folders(root, size, parents)
    base, tuned = found
    if complete(root, size, parents):
        return found
    missing = (1 + parents) * tensor_bytes(size)
    root.mkdir(parents=True, exist_ok=True)
    need_space(root, missing, f"{1 + parents} {size} checkpoints")
    (root / size / STAMP).unlink(missing_ok=True)
    for folder in (base, *tuned):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("model*.safetensors*"):
            stale.unlink()
        _write_small_files(folder, size)
    _write_weights([base, *tuned], size)
    (root / size / STAMP).write_text(json.dumps(_stamp(size, parents)))
    return found


def folders(root: Path, size: str, parents: int = 3) -> tuple[Path, list[Path]]:
    """The folders that `make` fills."""
    home = root / size
    return home / "base", [home / f"expert-{i + 1}" for i in range(parents)]


def complete(root: Path, size: str, parents: int = 3) -> bool:
    """Whether `make` has nothing left to do: the stamp agrees and no weight file is short."""
    try:
        stamp = json.loads((root / size / STAMP).read_text())
    except (OSError, ValueError):
        return False
    wanted = _stamp(size, parents)
    if stamp.pop("parents", 0) < wanted.pop("parents") or stamp != wanted:
        return False
    base, tuned = folders(root, size, parents)
    files = [sum(f.stat().st_size for f in weight_files(d)) for d in (base, *tuned)]
    return min(files) > tensor_bytes(size) and min(files) == max(files)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order."""
    return sorted(folder.glob("*.safetensors"))


def tensor_bytes(size: str) -> int:
    """Bytes of all tensors of one checkpoint."""
    return sum(2 * math.prod(shape) for shape in _tensors(SIZES[size]).values())


def need_space(folder: Path, size: int, what: str) -> None:
    """Stop with a message unless `folder`'s disk has `size` bytes free, and a twentieth besides."""
    free = shutil.disk_usage(folder).free
    if free < size * 1.05:
        raise SystemExit(
            f"{what} need {size * 1.05 / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB "
            "free: make room, or name another folder with --dir"
        )


def _stamp(size: str, parents: int) -> dict[str, Any]:
    made = {"format": FORMAT, "shard_bytes": SHARD_BYTES, "parents": parents}
    return made | asdict(SIZES[size])


def _tensors(s: Shape) -> Tensors:
    """Names and shapes, in the order of the state dict of LlamaForCausalLM."""
    kv = s.hidden // s.heads * s.kv_heads
    layer = {
        "self_attn.q_proj": (s.hidden, s.hidden),
        "self_attn.k_proj": (kv, s.hidden),
        "self_attn.v_proj": (kv, s.hidden),
        "self_attn.o_proj": (s.hidden, s.hidden),
        "mlp.gate_proj": (s.intermediate, s.hidden),
        "mlp.up_proj": (s.intermediate, s.hidden),
        "mlp.down_proj": (s.hidden, s.intermediate),
        "input_layernorm": (s.hidden,),
        "post_attention_layernorm": (s.hidden,),
    }
    out: Tensors = {"model.embed_tokens.weight": (s.vocab, s.hidden)}
    for i in range(s.layers):
        out |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    out["model.norm.weight"] = (s.hidden,)
    return out if s.tied else out | {"lm_head.weight": (s.vocab, s.hidden)}


def _shards(tensors: Tensors) -> dict[str, Tensors]:
    """File name -> its tensors, cut and named as transformers does."""
    cut: list[Tensors] = [{}]
    used = 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        if used and used + size > SHARD_BYTES:
            cut.append({})
            used = 0
        cut[-1][name] = shape
        used += size
    if len(cut) == 1:
        return {"model.safetensors": cut[0]}
    return {f"model-{i + 1:05}-of-{len(cut):05}.safetensors": part for i, part in enumerate(cut)}


def _write_weights(targets: list[Path], size: str) -> None:
    shards = _shards(_tensors(SIZES[size]))
    fill = _filler(len(targets))
    for file, tensors in shards.items():
        tensors = dict(sorted(tensors.items()))
        with ExitStack() as stack:
            outs = [stack.enter_context(open(d / file, "wb")) for d in targets]
            for out in outs:
                out.write(_header(tensors))
            for shape in tensors.values():
                fill(outs, math.prod(shape), 1.0 if len(shape) == 1 else 0.0)
        print(f"made {file} of {len(targets)} {size} checkpoints", flush=True)
    if len(shards) > 1:
        weight_map = {name: file for file, part in shards.items() for name in part}
        index = {"metadata": {"total_size": tensor_bytes(size)}, "weight_map": weight_map}
        for folder in targets:
            _write_json(folder / "model.safetensors.index.json", index)


def _header(tensors: Tensors) -> bytes:
    """A safetensors header: its length, then JSON padded to a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _filler(count: int) -> Callable[[Sequence[BinaryIO], int, float], None]:
    """A function that writes one tensor of so many elements around a centre to `count` files."""
    import torch

    pool = torch.randn(POOL + BLOCK, generator=torch.Generator().manual_seed(0)).mul_(STD)
    wide = torch.empty(BLOCK)
    narrow = [torch.empty(BLOCK, dtype=torch.bfloat16) for _ in range(count)]
    starts, turns = _starts(), itertools.count()

    def noise(length: int) -> torch.Tensor:
        start = next(starts)
        return pool[start : start + length]

    def fill(outs: Sequence[BinaryIO], elements: int, centre: float) -> None:
        scale = 1 / STD if centre else 1.0  # deltas are relative: norms are 1, weights 0.02
        for at in range(0, elements, BLOCK):
            n = min(BLOCK, elements - at)
            base, turn = narrow[0][:n], next(turns)
            base.copy_(torch.add(noise(n), centre, out=wide[:n]))
            for i in range(1, count):
                size = 10 ** -(2 + (turn + i) % 5 / 4)  # 1e-2 to 1e-3
                torch.add(base, noise(n), alpha=size * scale, out=wide[:n])
                narrow[i][:n].copy_(wide[:n])
            for out, block in zip(outs, narrow, strict=True):
                out.write(block[:n].view(torch.int16).numpy().data)

    return fill


def _starts() -> Iterator[int]:
    """Places in the pool, all different, so that no two blocks are the same."""
    return (i * STRIDE % POOL for i in range(POOL))


def _write_small_files(folder: Path, size: str) -> None:
    """The configs, and a tokenizer of four words: without one, peers report an error."""
    _write_json(folder / "config.json", _config(SIZES[size]))
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    )
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )


def _config(s: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": s.hidden // s.heads,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": STD,
        "intermediate_size": s.intermediate,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": s.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": s.vocab,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def default_dir() -> Path:
    """Where models are kept when no folder is named: they are large, and cheap to make again."""
    return Path(tempfile.gettempdir()) / "merge-models-bench"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--dir", type=Path, default=default_dir())
    parser.add_argument("--parents", type=int, default=3)
    args = parser.parse_args()
    base, _ = make(args.dir.resolve(), args.size, args.parents)
    print(f"{args.size}: {base.parent}")


if __name__ == "__main__":
    main()
