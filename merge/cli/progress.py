"""Progress of a merge: a bar on a terminal, a line per tenth elsewhere, nothing when quiet.

Lines are at least ``INTERVAL`` seconds apart, but for the last: a short merge prints that one alone.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from merge_models.merge.sizes import shown_size

INTERVAL = 2.0


class Progress:
    """Counts bytes from any thread; use as a context manager."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._tenth = 0
        self._started = self._told = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """Begins, for so many bytes."""
        self._total, self._started = total, time.monotonic()
        self._told, self._done, self._tenth = self._started, 0, 0
        if self._quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("merge", total=total)
        self._bar.start()

    def advance(self, nbytes: int) -> None:
        """Adds bytes that were just written."""
        if self._quiet:
            return
        with self._lock:
            self._done += nbytes
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)
            elif self._total and self._done * 10 // self._total > self._tenth:
                now = time.monotonic()
                if now - self._told >= INTERVAL or self._done >= self._total:
                    self._told = now
                    self._tenth = self._done * 10 // self._total
                    self._print_line()

    def _print_line(self) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self._done / seconds
        left = (self._total - self._done) / rate if rate else 0.0
        print(
            f"{self._tenth * 10:3d} %  {shown_size(self._done)} of {shown_size(self._total)} written,"
            f" {shown_size(rate)}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
