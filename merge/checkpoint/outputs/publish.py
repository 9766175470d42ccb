"""Putting a folder into its place so that neither a crash nor a reader ever sees half of it."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_EXCHANGE = 2  # Linux: RENAME_EXCHANGE; macOS: RENAME_SWAP
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def sync_file(file: Path) -> None:
    """Waits until a file's or folder's content is on the disk, where the file system can say so."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # folders on some network file systems
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until everything under a folder is on the disk: files first, then the folders that name them."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_file(Path(place) / name)
        sync_file(Path(place))


def put_in_place(made: Path, target: Path, aside: Path, replace: bool) -> None:
    """Makes ``made`` the folder ``target``.

    What stood at the target (which ``replace`` allows) is then at ``made`` or at ``aside``. Where the system
    can exchange two folders in one step, there is no moment without a target; elsewhere it is missing between
    two renames, and :func:`settle` mends what a crash leaves there.

    Raises:
        OSError: the file system refuses; the target is as it was.
    """
    if replace and target.is_dir():
        if exchange(made, target):
            return
        os.rename(target, aside)
    os.rename(made, target)


def settle(target: Path, aside: Path) -> None:
    """Brings an old target back that was put aside, where nothing has taken its place."""
    if aside.exists() and not target.exists():
        os.rename(aside, target)


def exchange(left: Path, right: Path) -> bool:
    """Exchanges two folders in one step; False where this system or file system cannot.

    Raises:
        OSError: it can, but refuses.
    """
    call = _exchange_call()
    if call is None:
        return False
    if call(os.fsencode(left), os.fsencode(right)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(right))


@lru_cache(maxsize=1)
def _exchange_call() -> Any:
    """renameat2 (Linux, glibc 2.28 or musl 1.2.6) or renamex_np (macOS), or None."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda left, right: library.renamex_np(left, right, ctypes.c_uint(_EXCHANGE))
    if hasattr(library, "renameat2"):
        return lambda left, right: library.renameat2(
            _AT_FDCWD, left, _AT_FDCWD, right, ctypes.c_uint(_EXCHANGE)
        )
    return None
