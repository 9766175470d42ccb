"""One writer at a time: an advisory lock that the system lets go of when its process ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def lock_file(file: Path) -> int | None:
    """Locks a file, which is made; returns its descriptor, or None while another process or thread has it.

    Where the file system has no locks (some network ones), nobody is kept out.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
        if _is_at(descriptor, file):
            return descriptor
        os.close(descriptor)  # its owner removed it while we waited for the descriptor


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        there = os.stat(file)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)
