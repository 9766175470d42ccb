"""What a merge has finished, so that the same command goes on where it was stopped.

One line for each finished tensor: its digest, and what is to be told of it. Nothing is synced to the disk
while a merge runs, and no order of writes is relied on: when a merge goes on, every tensor that the journal
vouches for is read back and its digest compared, and done again where it differs. That covers

- a killed process: what it wrote is in the page cache, whole or not, and the digest tells which;
- a crashed machine or a lost power supply, where any subset of the last writes may be missing or torn, in the
  shards and in the journal, in any order;
- a disk that lost or changed what it had taken, and files that somebody changed meanwhile.

The price is one reading of what was done, at the speed of the disk; the gain is that a merge never waits for
the disk before its end. What a crash of the machine can cost is what the system had not written back yet,
about the last half minute on Linux.

Each line begins with its own check: the first 16 hex digits of the BLAKE3 of the first line's digest and the
line's text. So a torn line is seen (it and what follows is cut off), and a line of another merge's journal is
none of this one's. The first line is the binding: all that the output's bytes depend on.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from merge_models.merge.errors import CheckpointError

FORMAT = 1
_SEED = b"merge-models journal"


def binding_digest(binding: Mapping[str, Any]) -> str:
    """Returns the digest of all that an output depends on."""
    return blake3(json.dumps({"format": FORMAT, **binding}, sort_keys=True).encode()).hexdigest()


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _line(key: bytes, text: str) -> bytes:
    return f"{_check(key, text)} {text}\n".encode()


def _check(key: bytes, text: str) -> str:
    return blake3(key + text.encode()).hexdigest()[:16]


class Journal:
    """The journal of one merge; made by :meth:`create` or :meth:`load`.

    Attributes:
        binding: all that the output depends on.
        records: what was noted before, in order.
    """

    def __init__(self, file: Path, binding: dict[str, Any], records: list[dict[str, Any]]) -> None:
        self.binding, self.records = binding, records
        self._file = file
        self._key = binding_digest(binding).encode()
        self._lock = threading.Lock()
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @classmethod
    def create(cls, file: Path, binding: Mapping[str, Any]) -> Journal:
        """Returns a new journal, in the place of any older one.

        Raises:
            OSError: it cannot be written.
        """
        file.unlink(missing_ok=True)
        journal = cls(file, dict(binding), [])
        journal._write(_line(_SEED, _text({"format": FORMAT, **binding})))
        return journal

    @classmethod
    def load(cls, file: Path) -> Journal | None:
        """Returns the journal that a merge left, without what is torn; None where there is none that can be
        read.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        lines = data.split(b"\n")[:-1]
        header = _parse(_SEED, lines[0]) if lines else None
        if header is None or header.pop("format", None) != FORMAT:
            return None
        key, records, end = binding_digest(header).encode(), [], len(lines[0]) + 1
        for line in lines[1:]:
            record = _parse(key, line)
            if record is None:
                break
            records.append(record)
            end += len(line) + 1
        journal = cls(file, header, records)
        os.ftruncate(journal._descriptor, end)
        return journal

    def append(self, record: Mapping[str, Any]) -> None:
        """Notes something; from any thread.

        Raises:
            CheckpointError: the disk does not take it.
        """
        with self._lock:
            try:
                self._write(_line(self._key, _text(record)))
            except OSError as error:
                raise CheckpointError(
                    f"{self._file}: cannot be written: {error.strerror}; make room, or choose another disk"
                ) from None

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def _parse(key: bytes, line: bytes) -> dict[str, Any] | None:
    check, _, text = line.decode("utf-8", "replace").partition(" ")
    if _check(key, text) != check:
        return None
    value = json.loads(text)
    return value if isinstance(value, dict) else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns what differs between two bindings, in the user's words; empty where nothing does."""
    records = []
    for part in dict.fromkeys([*old, *new]):
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
            shown = ", ".join(_change(key, before.get(key), after.get(key)) for key in keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            records.append(f"{part}: {shown}{more}")
        else:
            records.append(part)
    return "; ".join(records)


def _change(key: str, before: Any, after: Any) -> str:
    """A changed entry: plain words with both values, anything longer by its name."""
    short = all(isinstance(v, (str, int, float)) and len(str(v)) <= 40 for v in (before, after))
    if short:
        return f"{key} was {before}, is {after}"
    return f"{key} is new" if before is None else f"{key} is gone" if after is None else f"{key} has changed"
