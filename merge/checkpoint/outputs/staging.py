"""Writing a checkpoint: all of it appears at the target in one rename, or none of it does."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from merge_models.merge.checkpoint.digest import digest_bytes, digest_range
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.open_files import OpenFile, OpenFiles, advice
from merge_models.merge.checkpoint.outputs.journal import Journal, binding_digest, differences
from merge_models.merge.checkpoint.outputs.layout import Layout
from merge_models.merge.checkpoint.outputs.lock import lock_file
from merge_models.merge.checkpoint.outputs.publish import put_in_place, settle, sync_file, sync_tree
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


_WRITING = os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
"""Flags of a shard; where it is a link, what that leads to is not opened."""

_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
"""Endings of weight files: who names one does not expect a folder."""


def _check_place(target: Path, inputs: list[Path]) -> None:
    resolved = target.resolve()
    for path in inputs:
        other = path.resolve()
        if resolved == other or other in resolved.parents or resolved in other.parents:
            raise CheckpointError(f"output {target} and input {path} overlap; choose another output")
    if target.suffix in _FILES and not target.is_dir():
        raise CheckpointError(
            f"output {target} has the name of a file, and a merge is written as a folder; name one, such as"
            f" {target.with_suffix('')}"
        )
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


def free_space(target: Path) -> int | None:
    """Returns bytes free where ``target`` will be; None where the file system does not say."""
    usage = shutil.disk_usage(_nearest_existing(target.resolve().parent))
    return usage.free if usage.total else None


class Staging:
    """A folder beside the target that becomes the target when the merge is complete.

    It has one name for each target, ``.NAME.merging``, so that the same command finds it again. In it are
    ``new`` (the target to be), ``journal`` and ``lock``. Whoever has the lock may write.

    Args:
        target: the output folder.
        layout: its files.
        overwrite: whether what stands at the target at the end may be replaced.

    Raises:
        CheckpointError: it cannot be made, or another merge is writing to this target.
    """

    def __init__(self, target: Path, layout: Layout, overwrite: bool = False) -> None:
        self.target = target = Path(os.path.abspath(target))
        self.home = staging_home(target)
        self.folder = self.home / "new"
        self._old, self._journal_file = self.home / "old", self.home / "journal"
        self._layout = layout
        self._paths = [self.folder / shard.name for shard in layout.shards]
        self._overwrite = overwrite
        self._journal: Journal | None = None
        self._files = OpenFiles()
        self._made_as: dict[Path, tuple[int, int]] = {}
        self._parents = [folder for folder in target.parents if not folder.exists()]
        try:
            self._lock = self._take()
        except OSError as error:
            self._remove_parents()
            refuses = error.errno == errno.ENOENT  # folders on the way were made: /proc answers so
            reason = "its file system takes no files" if refuses else error.strerror
            raise CheckpointError(f"{target}: cannot be made: {reason}; choose another output") from None

    def _take(self) -> int:
        self.home.mkdir(parents=True, exist_ok=True)
        lock = lock_file(self.home / "lock")
        if lock is None:
            raise CheckpointError(
                f"output {self.target}: another merge is writing it; wait for that one, or choose another"
                " output"
            )
        settle(self.target, self._old)
        return lock

    def begin(self, binding: Mapping[str, Any], restart: bool = False) -> list[dict[str, Any]]:
        """Goes on where an earlier merge stopped, or begins anew.

        Args:
            binding: all that the output's bytes depend on.
            restart: forget what an earlier merge has finished.

        Returns:
            What the journal holds: empty for a merge that begins.

        Raises:
            CheckpointError: another merge's unfinished work is here, or the disk refuses.
        """
        try:
            journal = None if restart else Journal.load(self._journal_file)
            if journal is not None and self._was_published(journal):
                journal.close()
                journal = None
            if journal is not None:
                changed = differences(journal.binding, binding)
                if changed:
                    journal.close()
                    self.close()
                    raise CheckpointError(
                        f"output {self.target}: an unfinished merge is there, of which something has"
                        f" changed since ({printable(changed, 600)}); begin anew with --restart"
                        " (restart=True), or choose another output"
                    )
                self._journal = journal
                return journal.records
            self._clear()
            self._journal = Journal.create(self._journal_file, binding)
        except OSError as error:
            self.discard()
            raise self._full(self._journal_file, error) from None
        return []

    def _was_published(self, journal: Journal) -> bool:
        """Whether all but the cleaning up was done: what is here then is what the target was before."""
        ready = any(record.get("publishing") for record in journal.records)
        try:
            made = read_json(self.target / MANIFEST).get("digest") if ready else None
        except CheckpointError:
            return False
        return made == binding_digest(journal.binding)

    def _clear(self) -> None:
        for entry in self.home.iterdir():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def allocate(self) -> None:
        """Makes every shard at its full size, with its header; those that are there already are kept.

        Raises:
            CheckpointError: the disk is too small.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            self._remove_others()
        except OSError as error:
            raise self._full(self.folder, error) from None
        for shard in self._layout.shards:
            file = self.folder / shard.name
            try:
                borrowed = self._files.borrow(file, _make)
                try:
                    descriptor = borrowed.descriptor
                    status = os.fstat(descriptor)
                    self._made_as[file] = status.st_dev, status.st_ino
                    if status.st_size > shard.nbytes:
                        os.ftruncate(descriptor, shard.nbytes)
                    _reserve(descriptor, shard.nbytes)
                    os.pwrite(descriptor, shard.header, 0)
                finally:
                    self._files.give_back(borrowed)
            except OSError as error:
                raise CheckpointError(
                    f"{file}: {shard.nbytes} bytes cannot be reserved: {error.strerror}; make room, or choose"
                    " another disk or a larger shard size"
                ) from None

    def _remove_others(self) -> None:
        """Small files are made again at the end; nothing that the merge does not make may stay."""
        shards = {shard.name for shard in self._layout.shards}
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in shards or not entry.is_file() or entry.is_symlink():
                entry.unlink()

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Puts bytes at ``start`` of a tensor; any thread, any order.

        Raises:
            CheckpointError: the disk does not take them, or the merge was stopped.
        """
        shard, offset = self._layout.places[name]
        view, done = memoryview(cast("Any", data)).cast("B"), 0
        borrowed = self._borrow(shard)
        try:
            while done < len(view):
                done += os.pwrite(borrowed.descriptor, view[done:], offset + start + done)
        except OSError as error:
            raise CheckpointError(
                f"{self._paths[shard]}: tensor '{printable(name)}' cannot be written: {error.strerror};"
                " make room, or choose another disk"
            ) from None
        finally:
            self._files.give_back(borrowed)

    def digest(self, name: str, nbytes: int, kind: str) -> str | None:
        """Returns the digest of a tensor as it is staged; None where it cannot be read."""
        shard, offset = self._layout.places[name]
        borrowed = self._borrow(shard)
        try:
            return digest_range(borrowed.descriptor, offset, nbytes, kind)
        except OSError:
            return None
        finally:
            self._files.give_back(borrowed)

    def _borrow(self, shard: int) -> OpenFile:
        """Returns a shard that nobody closes until it is given back."""
        try:
            return self._files.borrow(self._paths[shard], self._reopen)
        except OSError as error:
            if self._files.is_shut:
                raise CheckpointError(f"{self.target}: the merge was stopped") from None
            fix = advice(error, "run the merge again")
            raise CheckpointError(
                f"{self._paths[shard]}: cannot be opened again: {error.strerror}; {fix}"
            ) from None

    def _reopen(self, file: Path) -> int:
        """Opens a shard again that was closed to make room; it must be the one that was made."""
        descriptor = os.open(file, _WRITING)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != self._made_as[file]:
            os.close(descriptor)
            raise CheckpointError(f"{file}: was replaced while it was written; run the merge again")
        return descriptor

    def note(self, record: Mapping[str, Any]) -> None:
        """Adds a line to the journal."""
        assert self._journal is not None
        self._journal.append(record)

    def write_text(self, name: str, text: str) -> None:
        """Adds a small file."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: object) -> None:
        """Adds a small JSON file."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Adds a small file.

        Raises:
            CheckpointError: the disk does not take it.
        """
        file, flags = self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, flags, 0o666)
            try:
                left = data
                while left:
                    left = left[os.write(descriptor, left) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._full(file, error) from None

    def small_files(self) -> list[str]:
        """Names of all files in it but the shards, by their paths in the folder."""
        shards = {shard.name for shard in self._layout.shards}
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return sorted(set(file.relative_to(self.folder).as_posix() for file in files) - shards)

    def publish(self) -> None:
        """Makes the staged folder the target; what stood there before is removed last.

        All of it is on the disk before the target's name leads to it, so that not even a crash of the machine
        can leave half of it.

        Raises:
            CheckpointError: the file system refuses; the old target is then still in place.
        """
        self._close_files()
        try:
            sync_tree(self.folder)
            if self._journal is not None:
                self._journal.append({"publishing": True})
            status = os.stat(self.folder)
            self._made = status.st_dev, status.st_ino
            put_in_place(self.folder, self.target, self._old, self._overwrite)
            for folder in dict.fromkeys([self.home, self.target.parent, *(f.parent for f in self._parents)]):
                sync_file(folder)
        except OSError as error:
            raise CheckpointError(
                f"{self.target}: cannot be published: {error.strerror}; choose another output"
            ) from None
        self.discard()

    def write_index(self) -> None:
        """Adds the index of the shards, where there are several."""
        index = self._layout.index()
        if index is not None:
            self.write_json(self._layout.index_name, index)

    @property
    def is_published(self) -> bool:
        """Whether the target is what was staged here, whatever stopped the rest."""
        try:
            status = os.stat(self.target)
        except OSError:
            return False
        return self._made == (status.st_dev, status.st_ino)

    _made: tuple[int, int] | None = None

    def discard(self) -> None:
        """Removes all that was staged; the target is what it is."""
        self._close_files()
        settle(self.target, self._old)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._old, ignore_errors=True)
        for file in (self._journal_file, self.home / "lock"):
            file.unlink(missing_ok=True)  # the lock last: until then, nobody else begins here
        try:
            self.home.rmdir()
        except OSError:
            pass  # the next merge is already in it
        self.close()
        self._remove_parents()

    def close(self) -> None:
        """Lets go of the staging folder and leaves it as it is, for the same merge to go on."""
        self._close_files()
        settle(self.target, self._old)
        if self._journal is not None:
            self._journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _full(self, file: Path, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{file}: cannot be written: {error.strerror}; make room, or choose another disk"
        )

    def _remove_parents(self) -> None:
        """Removes the folders that were made on the way to the target, where they are still empty."""
        for folder in self._parents:
            try:
                folder.rmdir()
            except OSError:
                return

    def _close_files(self) -> None:
        """Closes the shards once begun writes are through: a worker may outlive a stopped merge."""
        self._files.shut()


def _make(file: Path) -> int:
    return os.open(file, _WRITING | os.O_CREAT, 0o666)


def staging_home(target: Path) -> Path:
    """Returns the folder beside a target that an unfinished merge into it lives in."""
    name = target.name
    if len(os.fsencode(name)) > 200:  # a name may have 255 bytes
        name = f"{name[:40]}-{digest_bytes(os.fsencode(name))[7:23]}"
    return target.with_name(f".{name}.merging")


def sweep(target: Path) -> None:
    """Removes what an interrupted merge has left beside a whole target, unless one is at work there."""
    home = staging_home(Path(os.path.abspath(target)))
    lock = lock_file(home / "lock") if home.is_dir() else None
    if lock is not None:
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock)


def staged_bytes(target: Path, layout: Layout) -> int:
    """Returns disk space that an unfinished merge into a target has reserved already."""
    total = 0
    for shard in layout.shards:
        try:
            status = os.stat(staging_home(Path(os.path.abspath(target))) / "new" / shard.name)
        except OSError:
            continue
        total += min(status.st_blocks * 512, shard.nbytes)
    return total


def _reserve(descriptor: int, nbytes: int) -> None:
    try:
        if hasattr(os, "posix_fallocate") and nbytes:
            os.posix_fallocate(descriptor, 0, nbytes)
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    os.ftruncate(descriptor, nbytes)
