"""The small files of a checkpoint: config, tokenizer, templates. One donor gives all of them."""

from __future__ import annotations

import copy
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.checkpoint.guard import check_inside
from merge_models.merge.checkpoint.sentence_modules import module_weights
from merge_models.merge.errors import CheckpointError

MAX_SIDECAR = 256 << 20
WANTED = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.vocab", "*.bpe",
    "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_LEFT = (
    "*.index.json", "adapter_*", "trainer_state.json", "*_results.json", "training_args*",
    "requirements*.txt",
)  # fmt: skip
_MADE = ("config.json", "README.md", "merge_manifest.json")
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
    """Files to copy from the donor's folder, by their path in it, and those left, with the reason.

    Attributes:
        folder: the donor's folder.
        copied, left: names of files, and why they are left.
        elsewhere: folders of the files that are copied from another one.
    """

    folder: Path
    copied: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def with_tokenizer_of(self, folder: Path) -> Sidecars:
        """Returns the same, but for the tokenizer's files, which are another folder's."""
        theirs = {name: folder for name in find_sidecars(folder).copied if is_tokenizer_file(name)}
        kept = self.without_tokenizer().copied
        return replace(self, copied=(*kept, *theirs), elsewhere=theirs)

    def without_tokenizer(self) -> Sidecars:
        """Returns the same, but for the tokenizer's files, which are made anew."""
        return replace(self, copied=tuple(name for name in self.copied if not is_tokenizer_file(name)))

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Returns name and content of every file to copy.

        Raises:
            CheckpointError: one cannot be read.
        """
        for name, file in self.files():
            try:
                yield name, file.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{file}: cannot be copied: {error.strerror}") from None

    def files(self) -> list[tuple[str, Path]]:
        """Returns name of every file to copy, and where it is."""
        return [(name, self.elsewhere.get(name, self.folder) / name) for name in self.copied]


def find_sidecars(folder: Path, merged: Collection[str] = ()) -> Sidecars:
    """Looks through a checkpoint's folder and one level below it (sentence-transformers' modules, and their
    weights where ``modules.json`` names them).

    Args:
        folder: the donor's folder.
        merged: names of its weight files, which are neither copied nor left.
    """
    copied: list[str] = []
    left: list[tuple[str, str]] = []
    modules = module_weights(folder)
    for path in _entries(folder):
        nested = _entries(path) if path.is_dir() and not _matches(path.name, _LEFT_FOLDERS) else []
        for file in nested if path.is_dir() else [path]:
            name = file.relative_to(folder).as_posix()
            if name in _MADE or name in merged or name.endswith(".index.json"):
                continue
            reason = _reason_to_leave(file, name in modules)
            if not reason:
                check_inside(folder, name)
            if reason:
                left.append((name, reason))
            else:
                copied.append(name)
    return Sidecars(folder, tuple(copied), tuple(left))


def first_foreign(folder: Path) -> str | None:
    """Returns the first thing in a folder that no checkpoint has, such as a run's optimizer state; None if
    all is."""
    modules = module_weights(folder)
    for path in _entries(folder):
        if path.is_dir() and not path.is_symlink():
            others = [
                name
                for name in (f"{path.name}/{file.name}" for file in _entries(path))
                if name not in modules and not _matches(name.rpartition("/")[2], WANTED)
            ]
            if others:
                return others[0]
        elif not _matches(path.name, (*WANTED, *_MADE, "*.safetensors", ".gitattributes")):
            return path.name
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror}; allow it") from None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _reason_to_leave(file: Path, is_module: bool) -> str:
    """Why a file is not copied; empty for one that is, as the weights of a module are."""
    if file.suffix == ".py":
        return "code is not copied"
    if not is_module and (not _matches(file.name, WANTED) or _matches(file.name, _LEFT)):
        return "not a config, tokenizer or licence file"
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        open(file, "rb").close()
    except PermissionError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}; allow it, or move it") from None
    except OSError:
        return "a link to nothing"
    return "too large" if status.st_size > MAX_SIDECAR else ""


def output_config(config: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    """Returns the donor's config, saying what was written.

    Args:
        config: the donor's config.json.
        dtype: dtype of most output elements.
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
    return result


def resized_config(config: Mapping[str, Any], rows: int, new_rows: int) -> dict[str, Any]:
    """Returns a config whose embeddings had ``rows`` rows and have ``new_rows`` now, nested configs included.

    Sizes of other vocabularies (a vision tower's) keep their value: those that were not ``rows``, unless it
    is the only one.
    """
    result = copy.deepcopy(dict(config))
    places = [result, *(nested for nested in result.values() if isinstance(nested, dict))]
    entries = [(place, key) for place in places for key in place if key.startswith("vocab_size")]
    same = [(place, key) for place, key in entries if place[key] == rows]
    for place, key in same or entries[:1]:
        place[key] = new_rows
    return result


_TOKENIZER = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "tekken.json", "normalizer.json",
    "*.tiktoken", "*.spm", "*.vocab", "*.bpe", "chat_template.*",
)  # fmt: skip


def is_tokenizer_file(name: str) -> bool:
    """Returns whether a file in a checkpoint's folder is part of its tokenizer."""
    return _matches(name, _TOKENIZER)
