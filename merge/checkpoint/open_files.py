"""Weight files in use, of which only so many stay open: models may have more shards than a process may.

Whoever reads from a file or writes to it borrows it, so that nobody closes it meanwhile: a descriptor's
number would be another file's soon after.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FEWEST = 8
"""Files that may be open however low the limit is."""

SHARE = 2
"""One in so many of a process's descriptors may be a weight file's; the others are the caller's."""

_FULL = (errno.EMFILE, errno.ENFILE)
"""What a system says where no more files may be open."""


@dataclass(eq=False)
class OpenFile:
    """A file that is open.

    Attributes:
        descriptor: of the file.
        users: how many use it now.
        is_left: whether it is to be closed by the last of them.
    """

    descriptor: int
    users: int = 0
    is_left: bool = False


_lock = threading.Lock()
_returned = threading.Condition(_lock)
_oldest_first: dict[OpenFile, tuple[OpenFiles, Path]] = {}
"""Every file that is open, of all checkpoints and outputs, the one that was opened first at the start."""


class OpenFiles:
    """The files of one checkpoint, or of one output."""

    def __init__(self) -> None:
        self._open: dict[Path, OpenFile] = {}
        self._is_shut = False

    def borrow(self, file: Path, opening: Callable[[Path], int]) -> OpenFile:
        """Returns a file, open until it is given back; the oldest one that nobody uses may be closed.

        Args:
            file: its path.
            opening: opens it where it is not open, and checks that it is the file that it should be.

        Raises:
            OSError: it cannot be opened, or none is opened any more.
        """
        with _lock:
            if self._is_shut:
                raise OSError(errno.EBADF, "no longer in use", os.fspath(file))
            borrowed = self._open.get(file)
            if borrowed is None:
                while len(_oldest_first) >= most_open() and _close_oldest():
                    pass
                borrowed = self._open[file] = OpenFile(_opened(file, opening))
                _oldest_first[borrowed] = self, file
            borrowed.users += 1
            return borrowed

    def give_back(self, borrowed: OpenFile) -> None:
        """Lets the file be closed when room is needed."""
        with _lock:
            borrowed.users -= 1
            if borrowed.is_left and not borrowed.users:
                os.close(borrowed.descriptor)
            if self._is_shut:
                _returned.notify_all()

    def borrow_open(self, file: Path) -> OpenFile | None:
        """Returns a file that is open until it is given back; None where it is not open."""
        with _lock:
            borrowed = self._open.get(file)
            if borrowed is not None:
                borrowed.users += 1
            return borrowed

    def close(self) -> None:
        """Closes all of them; those that someone uses are closed when they are given back."""
        with _lock:
            for file in [*self._open]:
                _close(self, file)

    def shut(self) -> None:
        """Closes all of them as soon as they are given back; from now on none is opened."""
        with _returned:
            self._is_shut = True
            while any(known.users for known in self._open.values()):
                _returned.wait()
        self.close()

    @property
    def is_shut(self) -> bool:
        """Whether no file is opened any more."""
        return self._is_shut

    def forget(self, file: Path) -> OpenFile:
        """Returns a file that is about to be closed, and knows it no more."""
        return self._open.pop(file)


def advice(error: OSError, otherwise: str) -> str:
    """Returns what to do where a file cannot be opened: raise the limit, if that was the reason."""
    return "raise the limit of open files (ulimit -n)" if error.errno in _FULL else otherwise


def most_open() -> int:
    """Returns how many weight files may be open at a time, by the limit of this process."""
    if sys.platform == "win32":
        return 4096
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if limit == resource.RLIM_INFINITY else max(FEWEST, limit // SHARE)


def _opened(file: Path, opening: Callable[[Path], int]) -> int:
    """A new descriptor. Where none is left, since others have opened more than their share, room is made."""
    while True:
        try:
            return opening(file)
        except OSError as error:
            if error.errno not in _FULL or not _close_oldest():
                raise


def _close_oldest() -> bool:
    """Closes the file that was opened first of those that nobody uses; False where there is none."""
    for known, (owner, file) in _oldest_first.items():
        if not known.users:
            _close(owner, file)
            return True
    return False


def _close(owner: OpenFiles, file: Path) -> None:
    known = owner.forget(file)
    del _oldest_first[known]
    known.is_left = known.users > 0
    if not known.is_left:
        os.close(known.descriptor)
