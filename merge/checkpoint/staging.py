"""Writing a checkpoint: all of it appears at the target in one rename, or none of it does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layout import Layout
from merge_models.merge.checkpoint.sidecars import first_foreign
from merge_models.merge.errors import CheckpointError

MANIFEST = "merge_manifest.json"


def check_target(target: Path, inputs: list[Path], overwrite: bool) -> None:
    """Checks that a merge may be published at ``target``; nothing is touched.

    Raises:
        CheckpointError: it exists (and is not empty), is no checkpoint that may be overwritten, lies in an
            input or an input in it, cannot be replaced in one step, or its place is read-only.
    """
    try:
        _check_place(target, inputs)
        if target.is_dir() and any(target.iterdir()):
            _check_replaceable(target, overwrite)
    except OSError as error:
        raise CheckpointError(f"output {target}: {error.strerror}; choose another output") from None


def _check_place(target: Path, inputs: list[Path]) -> None:
    resolved = target.resolve()
    for path in inputs:
        other = path.resolve()
        if resolved == other or other in resolved.parents or resolved in other.parents:
            raise CheckpointError(f"output {target} and input {path} overlap; choose another output")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"output {target} exists and is no folder; choose another output")
    here = Path.cwd()
    if resolved == here or resolved in here.parents:
        raise CheckpointError(f"output {target} is the current folder or holds it; name a new folder in it")
    if os.path.ismount(target):
        raise CheckpointError(f"output {target} is a mount point; name a new folder in it")
    place = _nearest_existing(resolved.parent)
    if not place.is_dir():
        raise CheckpointError(f"output {target}: {place} is no folder; choose another output")
    if not os.access(place, os.W_OK | os.X_OK):
        raise CheckpointError(f"output {target}: no permission to write in {place}; choose another output")


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise CheckpointError(
            f"output {target} exists; choose another, or replace it (--overwrite, overwrite=True)"
        )
    if not (target / MANIFEST).is_file() and not any(target.glob("*.safetensors")):
        raise CheckpointError(f"output {target} holds no checkpoint and is not overwritten; move it away")
    if not os.access(target, os.W_OK | os.X_OK):
        raise CheckpointError(f"output {target}: no permission to replace it; choose another output")
    foreign = first_foreign(target)
    if foreign:
        raise CheckpointError(
            f"output {target} also holds '{printable(foreign)}', which is no part of a checkpoint and would"
            " be lost; move it away or choose another output"
        )


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_space(target: Path) -> int:
    """Bytes free where ``target`` will be."""
    return shutil.disk_usage(_nearest_existing(target.resolve().parent)).free


class Staging:
    """A folder beside the target that becomes the target when the merge is complete.

    Args:
        target: the output folder.
        layout: its files.
        overwrite: whether what stands at the target at the end may be replaced.
    """

    def __init__(self, target: Path, layout: Layout, overwrite: bool = False) -> None:
        self.target = target = Path(os.path.abspath(target))
        self._layout = layout
        self._overwrite = overwrite
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        self._parents = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=f".{target.name[:50]}.merging-", dir=target.parent)
            self.folder = Path(made)
            self._old = self.folder.with_name(self.folder.name.replace(".merging-", ".replaced-"))
            umask = os.umask(0)
            os.umask(umask)
            self.folder.chmod(0o777 & ~umask)
        except OSError as error:
            self._remove_parents()
            raise CheckpointError(
                f"{target}: cannot be made: {error.strerror}; choose another output"
            ) from None

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
                    f"{file}: {shard.nbytes} bytes cannot be reserved: {error.strerror}; make room, or choose"
                    " another disk or a larger shard size"
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
                raise CheckpointError(
                    f"{file}: tensor '{printable(name)}' cannot be written: {error.strerror}; make room, or"
                    " choose another disk"
                ) from None

    def write_text(self, name: str, text: str) -> None:
        """Adds a small file."""
        try:
            (self.folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"{self.folder / name}: cannot be written: {error.strerror}; make room, or choose another"
                " disk"
            ) from None

    def write_json(self, name: str, value: object) -> None:
        """Adds a small JSON file."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def publish(self) -> None:
        """Makes the staging folder the target; what stood there before is removed last.

        Raises:
            CheckpointError: the file system refuses; the old target is then still in place.
        """
        index = self._layout.index()
        if index is not None:
            self.write_json("model.safetensors.index.json", index)
        self._close()
        try:
            if self._overwrite and self.target.is_dir():
                os.rename(self.target, self._old)
            os.rename(self.folder, self.target)
        except OSError as error:
            raise CheckpointError(
                f"{self.target}: cannot be published: {error.strerror}; choose another output"
            ) from None
        finally:
            self._settle()

    def discard(self) -> None:
        """Removes the staging folder; the target is as it was."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._settle()
        self._remove_parents()

    def _settle(self) -> None:
        """Whatever interrupted the two renames, the target is then whole: the new one, or the old one."""
        if self._old.exists():
            if self.target.exists():
                shutil.rmtree(self._old, ignore_errors=True)
            else:
                os.rename(self._old, self.target)

    def _remove_parents(self) -> None:
        """Removes the folders that were made on the way to the target, where they are still empty."""
        for folder in self._parents:
            try:
                folder.rmdir()
            except OSError:
                return

    def _close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()


def _reserve(descriptor: int, nbytes: int) -> None:
    try:
        if hasattr(os, "posix_fallocate") and nbytes:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    os.ftruncate(descriptor, nbytes)
