"""The small files of a checkpoint: config, tokenizer, templates. One donor gives all of them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.errors import CheckpointError

MAX_SIDECAR = 256 << 20
_WANTED = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.vocab", "*.bpe",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_LEFT = (
    "config.json", "*.index.json", "merge_manifest.json", "adapter_*", "trainer_state.json",
    "*_results.json", "training_args*", "requirements*.txt",
)  # fmt: skip
_LEFT_FOLDERS = (
    "checkpoint-*",
    "runs",
    "onnx",
    "openvino",
    "original",
    "global_step*",
    ".*",
    "__*",
)


@dataclass(frozen=True)
class Sidecars:
    """Files to copy from the donor's folder, by their path in it, and those left, with the reason."""

    folder: Path
    copied: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    def copy_into(self, target: Path) -> None:
        """Copies the files' contents.

        Raises:
            CheckpointError: one cannot be read or written.
        """
        for name in self.copied:
            try:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, target / name)
            except OSError as error:
                raise CheckpointError(f"{self.folder / name}: cannot be copied: {error.strerror}") from None


def find_sidecars(folder: Path) -> Sidecars:
    """Looks through a checkpoint's folder and one level below it (sentence-transformers' modules)."""
    copied: list[str] = []
    left: list[tuple[str, str]] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not any(fnmatch(path.name, pattern) for pattern in _LEFT_FOLDERS):
                files = sorted(p for p in path.iterdir() if p.is_file())
                copied += [f"{path.name}/{p.name}" for p in files if _is_wanted(p)]
        elif _is_wanted(path):
            copied.append(path.name)
        elif path.suffix == ".py":
            left.append((path.name, "code is not copied"))
        elif path.name not in ("config.json", "README.md", "merge_manifest.json"):
            left.append((path.name, "not a config, tokenizer or licence file"))
    return Sidecars(folder, tuple(copied), tuple(left))


def _is_wanted(path: Path) -> bool:
    wanted = any(fnmatch(path.name, pattern) for pattern in _WANTED)
    wanted = wanted and not any(fnmatch(path.name, pattern) for pattern in _LEFT)
    return wanted and path.stat().st_size <= MAX_SIDECAR


def output_config(config: Mapping[str, Any], dtype: DType, untied: bool) -> dict[str, Any]:
    """The donor's config, saying what was written.

    Args:
        config: the donor's config.json.
        dtype: dtype of most output elements.
        untied: the output has a head of its own although the donor's config ties it to the embedding.
    """
    result = copy.deepcopy(dict(config))
    keys = [key for key in ("dtype", "torch_dtype") if key in result] or ["torch_dtype"]
    for key in keys:
        result[key] = dtype.torch_name
    for nested in result.values():
        if isinstance(nested, dict):
            for key in ("dtype", "torch_dtype"):
                if isinstance(nested.get(key), str):
                    nested[key] = dtype.torch_name
    if untied:
        result["tie_word_embeddings"] = False
    return result


_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")


def stacked_config(
    config: Mapping[str, Any], origins: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """The donor's config for an output of other layers: their count, and every list with one entry a layer.

    Args:
        config: the donor's config.
        origins: for each output layer, the config of the model and the layer that it starts from.
    """
    result = copy.deepcopy(dict(config))
    count = next((config[key] for key in _LAYER_COUNTS if isinstance(config.get(key), int)), None)
    for key, value in config.items():
        if key in _LAYER_COUNTS and value == count:
            result[key] = len(origins)
        elif isinstance(value, list) and count is not None and len(value) == count:
            result[key] = [_entry_of(own, key, layer, value) for own, layer in origins]
        elif isinstance(value, dict) and any(isinstance(value.get(k), int) for k in _LAYER_COUNTS):
            nested = [(own.get(key, {}), layer) for own, layer in origins]
            result[key] = stacked_config(value, nested)
    return result


def _entry_of(own: Mapping[str, Any], key: str, layer: int, fallback: list[Any]) -> Any:
    values = own.get(key)
    return (
        values[layer] if isinstance(values, list) and layer < len(values) else fallback[layer % len(fallback)]
    )
