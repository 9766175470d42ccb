"""Writing a checkpoint: all of it appears at the target in one rename, or none of it does."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np

from merge_models.merge.checkpoint.layout import Layout
from merge_models.merge.errors import CheckpointError

MANIFEST = "merge_manifest.json"


def check_target(target: Path, inputs: list[Path], overwrite: bool) -> None:
    """Checks that a merge may be published at ``target``; nothing is touched.

    Raises:
        CheckpointError: it exists (and is not empty), is no checkpoint that may be overwritten, lies in an
            input or an input in it, or its parent folder is missing or read-only.
    """
    resolved = target.resolve()
    for path in inputs:
        other = path.resolve()
        if resolved == other or other in resolved.parents or resolved in other.parents:
            raise CheckpointError(f"output {target} and input {path} overlap; choose another output")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"output {target} exists and is no folder; choose another output")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise CheckpointError(f"output {target} exists; choose another, or pass --overwrite")
        if not (target / MANIFEST).is_file() and not any(target.glob("*.safetensors")):
            raise CheckpointError(f"output {target} holds no checkpoint; it will not be overwritten")
    place = _nearest_existing(resolved.parent)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise CheckpointError(f"output {target}: no permission to write in {place}")


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_space(target: Path) -> int:
    """Bytes free where ``target`` will be."""
    return shutil.disk_usage(_nearest_existing(target.resolve().parent)).free


class Staging:
    """A folder beside the target that becomes the target when the merge is complete."""

    def __init__(self, target: Path, layout: Layout) -> None:
        self.target = target
        self._layout = layout
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=f".{target.name}.merging-", dir=target.parent)
            self.folder = Path(made)
            umask = os.umask(0)
            os.umask(umask)
            self.folder.chmod(0o777 & ~umask)
        except OSError as error:
            raise CheckpointError(f"{target}: cannot be made: {error.strerror}") from None

    def allocate(self) -> None:
        """Creates every shard at its full size, with its header.

        Raises:
            CheckpointError: the disk is too small.
        """
        for shard in self._layout.shards:
            file = self.folder / shard.name
            try:
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                self._descriptors.append(descriptor)
                _reserve(descriptor, shard.nbytes)
                os.pwrite(descriptor, shard.header, 0)
            except OSError as error:
                raise CheckpointError(
                    f"{file}: {shard.nbytes} bytes cannot be reserved: {error.strerror}"
                ) from None

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Puts bytes at ``start`` of a tensor; any thread, any order.

        Raises:
            CheckpointError: the disk does not take them.
        """
        shard, offset = self._layout.places[name]
        view, done = memoryview(cast("Any", data)).cast("B"), 0
        while done < len(view):
            try:
                done += os.pwrite(self._descriptors[shard], view[done:], offset + start + done)
            except OSError as error:
                file = self.folder / self._layout.shards[shard].name
                raise CheckpointError(f"{file}: cannot be written: {error.strerror}") from None

    def write_text(self, name: str, text: str) -> None:
        """Adds a small file."""
        try:
            (self.folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{self.folder / name}: cannot be written: {error.strerror}") from None

    def write_json(self, name: str, value: object) -> None:
        """Adds a small JSON file."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def publish(self) -> None:
        """Makes the staging folder the target; what stood there before is removed last.

        Raises:
            CheckpointError: the file system refuses; the old target is then still in place.
        """
        index = self._layout.index()
        if index is not None:
            self.write_json("model.safetensors.index.json", index)
        self._close()
        old = self.folder.with_name(self.folder.name.replace(".merging-", ".replaced-"))
        had_target = self.target.is_dir() and any(self.target.iterdir())
        try:
            if had_target:
                os.rename(self.target, old)
            try:
                os.rename(self.folder, self.target)
            except OSError:
                if had_target:
                    os.rename(old, self.target)
                raise
        except OSError as error:
            raise CheckpointError(f"{self.target}: cannot be published: {error.strerror}") from None
        if had_target:
            shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Removes the staging folder; the target is as it was."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()


def _reserve(descriptor: int, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate") and nbytes:
        os.posix_fallocate(descriptor, 0, nbytes)
    else:
        os.ftruncate(descriptor, nbytes)
