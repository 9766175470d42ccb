"""Tiny checkpoints for tests, written by safetensors itself or byte by byte, never by the code under test."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge_models.merge import MergeResult, merge
from merge_models.merge.strategies import AbstractStrategy

ROOT = Path(__file__).parent.parent
"""The project's folder."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (11, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (11, 8),
}


def tensors(
    seed: int, dtype: torch.dtype = torch.float32, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, Tensor]:
    """A model's worth of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    shards: int = 1,
    config: Any = CONFIG,
    files: Mapping[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A checkpoint as transformers writes it: one file, or ``shards`` files and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", **(metadata or {})}
    if shards == 1:
        save_file(dict(state), folder / "model.safetensors", header)
    else:
        weight_map = {}
        for number in range(shards):
            name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = {key: state[key] for key in list(state)[number::shards]}
            save_file(part, folder / name, header)
            weight_map |= dict.fromkeys(part, name)
        total = sum(tensor.nbytes for tensor in state.values())
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    if config is not None:
        write_json(folder / "config.json", config)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_models(place: Path, count: int, dtype: torch.dtype = torch.float32) -> list[str]:
    """``count`` siblings in folders ``m0``, ``m1``, …; their paths."""
    return [str(write_folder(place / f"m{seed}", tensors(seed, dtype))) for seed in range(count)]


def write_hub(cache: Path, repository: str, commits: Mapping[str, Mapping[str, Tensor]]) -> None:
    """A repository in a cache as huggingface_hub fills it: states by commit, the last of which is main."""
    home = cache / f"models--{repository.replace('/', '--')}"
    for commit, state in commits.items():
        blobs = write_folder(home / "blobs" / commit, state)
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for blob in blobs.iterdir():
            (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
        point_hub(cache, repository, "main", commit)


def point_hub(cache: Path, repository: str, revision: str, commit: str) -> None:
    """Lets a branch or tag of a cached repository name a commit."""
    refs = cache / f"models--{repository.replace('/', '--')}" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / revision).write_text(commit)


def write_json(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value), encoding="utf-8")
    return file


def write_raw(file: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file byte by byte: any header (bytes, or JSON-able), any claimed length, any data."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def entry(dtype: str, shape: list[Any], start: Any, stop: Any) -> dict[str, Any]:
    """One tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, as safetensors reads them."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


def assert_same_bits(left: Tensor, right: Tensor, where: object = "") -> None:
    """Same dtype, shape and bytes (so -0.0 is not 0.0, and a NaN is its own bit pattern)."""
    assert (left.dtype, left.shape) == (right.dtype, right.shape), where
    if left.numel():
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (left, right))
        assert torch.equal(a, b), where


def merge_folders(
    models: Sequence[object], out: Path, strategy: AbstractStrategy | None = None, **options: Any
) -> dict[str, Tensor]:
    """Merges folders (or files) and reads the output."""
    result = merge([str(model) for model in models], strategy, out=out, **options)
    assert isinstance(result, MergeResult) and result.path == out
    return read_folder(out)


def merge_states(
    models: Sequence[Mapping[str, Tensor]], strategy: AbstractStrategy | None = None, **options: Any
) -> dict[str, Tensor]:
    """Merges state dicts in memory."""
    return cast("dict[str, Tensor]", merge(models, strategy, **options))


def listing(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content: what a failed command must leave as it was."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def listing_without_kept(folder: Path) -> dict[str, bytes]:
    """The same without what unfinished merges keep to go on from."""
    return {name: data for name, data in listing(folder).items() if ".merging" not in name}


def kept(folder: Path) -> list[str]:
    """Names of what unfinished merges keep, anywhere under a folder."""
    return sorted(path.name for path in folder.rglob(".*.merging"))
