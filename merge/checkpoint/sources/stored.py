"""A safetensors checkpoint on disk: its headers, and its bytes by block."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from merge_models.merge.checkpoint.header import (
    TensorInfo,
    printable,
    stamp,
)
from merge_models.merge.checkpoint.open_files import OpenFile, OpenFiles, advice
from merge_models.merge.errors import ChangedError, CheckpointError


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors checkpoint on disk: its headers, and its bytes by block.

    Attributes:
        label: what the user typed.
        path: the folder or file.
        files: the weight files.
        tensors: every tensor by name, in the files' order.
        config: config.json's content, ``{}`` where there is none.
        metadata: the first file's header metadata.
        stamps: what each file was when its header was read.
    """

    label: str
    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    metadata: dict[str, str]
    stamps: dict[Path, tuple[int, ...]]
    _opened: OpenFiles = field(default_factory=OpenFiles, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The folder with config and tokenizer (that of the file, where one file was named)."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def kept_bytes(self) -> int:
        """Bytes that reading keeps in memory: none."""
        return 0

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Reads bytes ``start`` to ``stop`` of a tensor into ``buffer``.

        Raises:
            CheckpointError: the file cannot be read there (it may have shrunk since it was opened).
        """
        data = buffer[: stop - start]
        view, position, done = data, info.offset + start, 0
        borrowed = self._borrow(info.file)
        try:
            while done < data.nbytes:
                got = os.preadv(borrowed.descriptor, [cast("Any", view)], position + done)
                if got == 0:
                    raise ChangedError(
                        f"{info.file}: ended inside tensor '{printable(info.name)}': it changed meanwhile;"
                        " run it again when it is complete"
                    )
                done += got
                view = data[done:]
        except OSError as error:
            raise CheckpointError(
                f"{info.file}: tensor '{printable(info.name)}' cannot be read: {error.strerror};"
                " check the disk, or copy the file again"
            ) from None
        finally:
            self._opened.give_back(borrowed)
        return data

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        return (info,)

    def _borrow(self, file: Path) -> OpenFile:
        try:
            return self._opened.borrow(file, self._open)
        except FileNotFoundError:
            raise ChangedError(f"{file}: has changed: it is no longer there; run it again") from None
        except OSError as error:
            fix = advice(error, "check the disk, and who may read it")
            raise CheckpointError(f"{file}: cannot be opened: {error.strerror}; {fix}") from None

    def _open(self, file: Path) -> int:
        """Opens a file of the checkpoint, which must be the one whose header was read."""
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        if stamp(descriptor) != self.stamps[file]:
            os.close(descriptor)
            raise ChangedError(f"{file}: has changed since its header was read; run it again")
        return descriptor

    def check_unchanged(self) -> None:
        """Checks that every file is the one whose header was read, under its name and where it was read.

        Raises:
            ChangedError: one was cut, rewritten, replaced or removed.
        """
        for file, seen in self.stamps.items():
            borrowed = self._opened.borrow_open(file)
            try:
                same = stamp(file) == seen and (borrowed is None or stamp(borrowed.descriptor) == seen)
            except OSError:
                same = False
            finally:
                if borrowed is not None:
                    self._opened.give_back(borrowed)
            if not same:
                raise ChangedError(f"{file}: has changed while it was read; run it again when it is complete")

    def close(self) -> None:
        """Closes the files that reading has opened."""
        self._opened.close()
