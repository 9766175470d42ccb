"""Many cases in a few processes, watched: one that never ends, or ends its process, costs only itself."""

from __future__ import annotations

import collections
import multiprocessing
import re
import time
from multiprocessing.connection import Connection
from typing import Any

from .cases import KINDS

PATIENCE = 120.0
"""Seconds after which a case counts as one that never ends; many, for machines that have other work."""


def work(numbers: list[int], pipe: Connection) -> None:
    """Runs cases one after the other and sends how each ended."""
    from .run import Bench, limit_memory

    with Bench() as bench:
        limit_memory()
        pipe.send(None)
        for number in numbers:
            pipe.send(bench.run(number))


class Worker:
    """A process that runs cases, and is started anew after one that kills or stops it."""

    def __init__(self, numbers: list[int]) -> None:
        self.left = numbers
        self.outcomes: list[Any] = []
        self.lost: list[tuple[int, str]] = []
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=work, args=(self.left, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._heard = time.monotonic() + PATIENCE  # starting takes its time

    def step(self) -> bool:
        """Takes what has been sent; returns whether there is more to come."""
        try:
            while self._pipe.poll(0.05):
                outcome = self._pipe.recv()
                self._heard = time.monotonic()
                if outcome is not None:
                    self.outcomes.append(outcome)
                    self.left = self.left[1:]
        except EOFError:
            self._process.join()
            if self.left:
                self._lose(f"ended the process (exit code {self._process.exitcode})")
        if self.left and time.monotonic() - self._heard > PATIENCE:
            self._process.kill()
            self._process.join()
            self._lose("never ends")
        return bool(self.left)

    def _lose(self, why: str) -> None:
        self.lost.append((self.left[0], why))
        self.left = self.left[1:]
        if self.left:
            self._start()


def campaign(first: int, count: int, jobs: int, seconds: float) -> int:
    """Runs cases, for so long at most, and prints what became of them; returns how many ended wrongly."""
    started = time.monotonic()
    workers = [Worker(list(range(first + job, first + count, jobs))) for job in range(jobs)]
    while any([worker.step() for worker in workers if worker.left]):
        if time.monotonic() - started > seconds:
            break
    outcomes = [outcome for worker in workers for outcome in worker.outcomes]
    wrong = [(o.number, "; ".join(o.wrong)) for o in outcomes if o.wrong]
    wrong += [lost for worker in workers for lost in worker.lost]
    for number, what in sorted(wrong):
        print(f"case {number} ({KINDS[number % len(KINDS)]}): {what}")
    messages = collections.Counter(
        re.sub(r"'[^']*'|\d+|models/\S+", "…", o.message) for o in outcomes if o.message
    )
    successes = sum(not o.message for o in outcomes)
    print(
        f"{len(outcomes)} cases in {time.monotonic() - started:.0f} s: {successes} successes,"
        f" {len(messages)} kinds of error, {len(wrong)} wrong;"
        f" at most {max((o.seconds for o in outcomes), default=0):.2f} s of processor and"
        f" {max((o.nbytes for o in outcomes), default=0) / 1e6:.0f} MB"
    )
    return len(wrong)
