"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path


def local_path(value: str | os.PathLike[str]) -> Path:
    """Returns a path, with ``~`` for the home folder where a shell has left it."""
    path = Path(value)
    try:
        return path.expanduser()
    except RuntimeError:  # nobody's home is known by that name
        return path
