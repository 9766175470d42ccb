"""The zip file that ``torch.save`` writes, read with suspicion: where each of its entries lies.

Only what ``torch.save`` makes is accepted: entries that are stored as they are, one after the other, each
under a name of its own, and the directory at the end without a comment.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from merge_models.merge.errors import CheckpointError, printable

MAX_ENTRIES = 100_000
MAX_DIRECTORY = 32 << 20
MAX_PICKLE = 4 << 20
"""Bytes of ``data.pkl``: each may make an object of a hundred bytes. Enough for twenty thousand tensors."""

_END, _END_64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED = 1
_AGAIN = "download it, or save it with torch.save, again"


@dataclass(frozen=True)
class Entry:
    """One file in the archive: where its bytes start, and how many they are."""

    name: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Archive:
    """What a zip file says that it holds.

    Attributes:
        entries: in the order of the file.
        directory: where the list of entries and their checksums lies: first byte, and number of bytes.
    """

    entries: tuple[Entry, ...]
    directory: tuple[int, int]

    def find(self, name: str) -> Entry | None:
        """Returns the entry with this name under the archive's own folder (``archive/data.pkl``)."""
        return next((e for e in self.entries if e.name.partition("/")[2] == name), None)


def is_archive(start: bytes) -> bool:
    """Returns whether a file with these first 9 bytes or more is such a zip file.

    A safetensors header may be as long as the mark of a zip file reads; it then begins with a brace.
    """
    return start.startswith(b"PK\x03\x04") and start[8:9] != b"{"


def read_archive(file: Path, descriptor: int) -> Archive:
    """Reads and checks the directory of a zip file; no entry is touched but for its own header.

    Args:
        file: for messages.
        descriptor: the open file.

    Raises:
        CheckpointError: it is not a whole archive of ``torch.save``, or not what one may be.
        OSError: it cannot be read.
    """
    size = os.fstat(descriptor).st_size
    start, length, count = _directory(file, descriptor, size)
    if count > MAX_ENTRIES or length > MAX_DIRECTORY:
        raise CheckpointError(f"{file}: its zip directory lists {count} entries in {length} bytes; refused")
    text = os.pread(descriptor, length, start)
    if len(text) != length:
        raise CheckpointError(f"{file}: ends inside its zip directory; {_AGAIN}")
    listed = sorted(_listed(file, text, count))
    entries, seen, position = [], set(), 0
    for offset, name, nbytes in listed:
        if name.lower() in seen:
            raise CheckpointError(f"{file}: has two zip entries '{printable(name)}'; {_AGAIN}")
        seen.add(name.lower())
        if offset < position:
            raise CheckpointError(f"{file}: zip entry '{printable(name)}' overlaps another; {_AGAIN}")
        first = _data_start(file, descriptor, offset, name)
        position = first + nbytes
        if position > start:
            raise CheckpointError(f"{file}: zip entry '{printable(name)}' ends outside the file; {_AGAIN}")
        entries.append(Entry(name, first, nbytes))
    return Archive(tuple(entries), (start, size - start))


def _directory(file: Path, descriptor: int, size: int) -> tuple[int, int, int]:
    """Where the directory starts, its bytes, and its number of entries."""
    broken = CheckpointError(f"{file}: is not a whole zip file of torch.save; {_AGAIN}")
    end_at = size - _END.size
    if end_at < 0:
        raise broken
    tail = os.pread(descriptor, _END.size, end_at)
    if len(tail) != _END.size:
        raise broken
    mark, _, _, _, count, length, start, comment = _END.unpack(tail)
    if mark != b"PK\x05\x06" or comment:
        raise broken
    locator_at = end_at - _LOCATOR.size
    locator = os.pread(descriptor, _LOCATOR.size, locator_at) if locator_at >= _END_64.size else b""
    if locator.startswith(b"PK\x06\x07"):
        end_at = locator_at - _END_64.size
        large = os.pread(descriptor, _END_64.size, end_at)
        if len(large) != _END_64.size or not large.startswith(b"PK\x06\x06"):
            raise broken
        if _LOCATOR.unpack(locator)[2] != end_at:
            raise broken
        count, length, start = _END_64.unpack(large)[7:]
    elif _FULL_16 == count or _FULL_32 in (length, start):
        raise broken
    if start + length != end_at:
        raise broken
    return start, length, count


def _listed(file: Path, text: bytes, count: int) -> Iterator[tuple[int, str, int]]:
    """Offset, name and size of every entry of the directory."""
    broken = CheckpointError(f"{file}: its zip directory is broken; {_AGAIN}")
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(text):
            raise broken
        fields = _ENTRY.unpack_from(text, at)
        mark, flags, method = fields[0], fields[3], fields[4]
        packed, nbytes, name_length, extra_length, comment_length = fields[8:13]
        offset, at = fields[16], at + _ENTRY.size
        raw, extra = text[at : at + name_length], text[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if mark != b"PK\x01\x02" or at > len(text):
            raise broken
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise broken from None
        wide = iter(_wide_fields(extra))
        nbytes, packed, offset = (
            next(wide, -1) if value == _FULL_32 else value for value in (nbytes, packed, offset)
        )
        if min(nbytes, packed, offset) < 0:
            raise broken
        if method != 0 or packed != nbytes or flags & _ENCRYPTED:
            raise CheckpointError(
                f"{file}: zip entry '{printable(name)}' is compressed or encrypted, which torch.save never"
                f" does; {_AGAIN}"
            )
        yield offset, name, nbytes
    if at != len(text):
        raise broken


def _wide_fields(extra: bytes) -> tuple[int, ...]:
    """The 64-bit sizes and offset that stand in an entry's extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])
        at += 4 + length
    return ()


def _data_start(file: Path, descriptor: int, offset: int, name: str) -> int:
    """Where an entry's bytes start, behind its own header."""
    raw = name.encode()
    head = b""
    if offset < 1 << 62:
        head = os.pread(descriptor, _LOCAL.size + len(raw), offset)
    if len(head) != _LOCAL.size + len(raw) or not head.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{file}: zip entry '{printable(name)}' is not where it should be; {_AGAIN}")
    method, name_length, extra_length = struct.unpack_from("<H", head, 8)[0], *_LOCAL.unpack_from(head)[9:11]
    if method != 0 or head[_LOCAL.size :] != raw or name_length != len(raw):
        raise CheckpointError(f"{file}: zip entry '{printable(name)}' has two descriptions; {_AGAIN}")
    return offset + _LOCAL.size + name_length + extra_length
