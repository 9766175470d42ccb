"""Does an output still hold what was written, and are its inputs still what was read? The manifest tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.digest import digest_file, digest_header, digest_stored, kind_of
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.header import TensorInfo, printable, read_header
from merge_models.merge.checkpoint.manifest import MANIFEST_FORMAT, PICKLE, SEAL, sealed
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.checkpoint.sources.hub import cached
from merge_models.merge.checkpoint.sources.pickled import read_pickled
from merge_models.merge.checkpoint.threads import workers
from merge_models.merge.errors import CheckpointError, MergeError


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        problems: one line for each file or tensor that is not what the manifest says; empty where all is.
        tensors, files: how many were compared.
        bytes: how many bytes were read.
    """

    problems: tuple[str, ...]
    tensors: int
    files: int
    bytes: int


def read_manifest(out: Path) -> dict[str, Any]:
    """Returns an output's manifest.

    Raises:
        CheckpointError: there is none, it is from another version, or it does not fit its own digest.
    """
    file = out / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{out}: has no {MANIFEST}; name the output folder of a merge")
    record = read_json(file)
    if record.get("format") != MANIFEST_FORMAT:
        other = printable(str(record.get("format")))
        raise CheckpointError(
            f"{file}: has format {other}, not {MANIFEST_FORMAT}; use the version that made it"
        )
    if sealed(record) != file.read_text(encoding="utf-8", errors="replace"):
        raise CheckpointError(f"{file}: was changed since it was written ({SEAL} does not fit); restore it")
    return record


def verify(out: str | os.PathLike[str], *, inputs: bool = False, threads: int = 1) -> Verification:
    """Compares every byte of an output folder with its manifest.

    Args:
        out: the output folder.
        inputs: also compare the inputs, as far as they were read.
        threads: workers.

    Raises:
        MergeError: there is no manifest to compare with, or it was changed itself.

    >>> from merge_models.merge import merge
    >>> merge(["runs/a", "runs/b"], out="runs/merged").path.name
    'merged'
    >>> verify("runs/merged").problems
    ()
    """
    folder, threads = local_path(out), workers(threads)
    record = read_manifest(folder)
    try:
        checks = _Checks()
        checks.add_output(folder, record)
        if inputs:
            for given in record["inputs"]:
                checks.add_input(given, record["models"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: lacks {error}; restore it") from None
    with ThreadPoolExecutor(threads) as pool:
        problems = [*checks.problems, *(p for p in pool.map(lambda check: check(), checks.pending) if p)]
    return Verification(
        tuple(printable(p, 2000) for p in problems), checks.tensors, checks.files, checks.bytes
    )


class _Checks:
    """What is found at once, and what takes reading."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.pending: list[Callable[[], str]] = []
        self.tensors = self.files = self.bytes = 0

    def add_output(self, folder: Path, record: Mapping[str, Any]) -> None:
        digests = record["digests"]
        self.files += 1  # the manifest
        for name, digest in digests["files"].items():
            self._small(folder / name, digest)
        found: dict[str, TensorInfo] = {}
        for name, digest in digests["headers"].items():
            found.update(self._shard(folder / name, digest))
        missing_file = any(not (folder / name).is_file() for name in digests["headers"])
        for name, digest in digests["tensors"].items():
            if name in found:
                self._tensor(found[name], digest)
            elif not missing_file:
                self.problems.append(f"{folder}: tensor '{name}' is missing")
        known = {MANIFEST, *digests["files"], *digests["headers"]}
        for name in files_under(folder):
            if name not in known:
                self.problems.append(f"{folder / name}: is no part of this merge")

    def add_input(self, given: Mapping[str, Any], models: Iterable[Mapping[str, Any]]) -> None:
        for small in given["small_files"]:
            self._small(_located(small["path"], models), small["digest"])
        for weight in given["files"]:
            file = _located(weight["path"], models)
            stored = self._shard(file, weight["header"], pickled=weight.get("format") == PICKLE)
            for name, digest in weight["read"].items():
                if name in stored:
                    self._tensor(stored[name], digest)
                elif stored:
                    self.problems.append(f"{file}: tensor '{name}' is missing")

    def _small(self, file: Path, digest: str) -> None:
        self.files += 1
        self.pending.append(lambda: _compare_file(file, digest))

    def _shard(self, file: Path, digest: str, *, pickled: bool = False) -> dict[str, TensorInfo]:
        """A shard's tensors; its header is compared at once."""
        self.files += 1
        if not file.is_file():
            self.problems.append(f"{file}: is missing")
            return {}
        try:
            tensors = read_pickled(file).stored() if pickled else read_header(file).tensors
            if digest_header(file) != digest:
                self.problems.append(f"{file}: its header has changed")
        except (MergeError, OSError) as error:
            self.problems.append(str(error))
            return {}
        return tensors

    def _tensor(self, info: TensorInfo, digest: str) -> None:
        self.tensors += 1
        self.bytes += info.nbytes
        self.pending.append(lambda: _compare_tensor(info, digest))


def _located(path: str, models: Iterable[Mapping[str, Any]]) -> Path:
    """Where an input's file is: at its path, or, from the Hub, in the cache that this machine has now."""
    if not os.path.exists(path):
        for model in models:
            _, commit, name = path.partition(f"/snapshots/{model.get('revision')}/")
            folder = cached(model["repository"], model["revision"]) if commit else None
            if folder is not None:
                return folder / name
    return Path(path)


def _compare_file(file: Path, digest: str) -> str:
    try:
        return "" if digest_file(file) == digest else f"{file}: has changed"
    except OSError as error:
        return f"{file}: is missing" if not file.exists() else f"{file}: cannot be read: {error.strerror}"


def _compare_tensor(info: TensorInfo, digest: str) -> str:
    try:
        same = digest_stored(info, kind_of(digest)) == digest
    except MergeError as error:
        return str(error)
    return "" if same else f"{info.file}: tensor '{info.name}' has changed"


def files_under(folder: Path) -> Sequence[str]:
    """Returns every file in a folder but hidden ones, which tools leave there (.gitattributes, .cache)."""
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
