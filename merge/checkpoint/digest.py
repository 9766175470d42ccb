"""Digests of tensors and files, and how anybody can check them.

``blake3:HEX`` is the plain BLAKE3 of a small file's bytes: what ``b3sum FILE`` prints.

A tensor's digest is a tree of one level, so that any thread may hash any part of it in any order. Its bytes,
as they lie in the safetensors file (little-endian, row-major, without the header), are cut into pieces of
2^18 bytes; the last one may be shorter, and a tensor without bytes has no pieces. The digest is the hash of
the pieces' hashes, one after the other::

    pieces = [data[at : at + 2**18] for at in range(0, len(data), 2**18)]
    digest = blake3(b"".join(blake3(piece).digest() for piece in pieces)).hexdigest()

``blake3t:HEX`` is that with BLAKE3 (256 bits): nobody can make other bytes with the same digest.
``xxh3t:HEX`` is that with XXH3 (128 bits, big-endian): ten times as fast, and enough to find every accident,
but a forger could make other bytes with the same digest.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from blake3 import blake3
from xxhash import xxh3_128_digest

from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.sources.archive import is_archive, read_archive
from merge_models.merge.errors import CheckpointError

PIECE = 1 << 18
STRONG, FAST = "blake3t", "xxh3t"
_CHUNK = 1 << 20


def _blake3(data: Any) -> bytes:
    return blake3(data).digest()


_HASHES: dict[str, Callable[[Any], bytes]] = {STRONG: _blake3, FAST: xxh3_128_digest}


class Kinds(NamedTuple):
    """Kinds of the digests that a manifest tells tensors by: ``STRONG`` or ``FAST`` each."""

    output: str = STRONG
    inputs: str = FAST


class TensorDigest:
    """The digest of one tensor, whose bytes come in any order, from any thread, each byte once.

    Args:
        nbytes: the tensor's size.
        kind: ``STRONG`` or ``FAST``.
    """

    def __init__(self, nbytes: int, kind: str = STRONG) -> None:
        self._nbytes, self._kind, self._hash = nbytes, kind, _HASHES[kind]
        self._left = -(-nbytes // PIECE)
        self._pieces: list[bytes] = [b""] * self._left
        self._fragments: dict[int, list[tuple[int, bytes]]] = {}
        self._lock = threading.Lock()

    def add(self, start: int, data: np.ndarray) -> None:
        """Takes the bytes from ``start`` on. Pieces that are cut wait for their other parts."""
        stop = start + data.nbytes
        first = -(-start // PIECE)
        last = self._count() if stop == self._nbytes else stop // PIECE
        at = first * PIECE - start
        for number in range(first, last):
            self._pieces[number] = self._hash(data[at : at + PIECE])
            at += PIECE
        with self._lock:
            self._left -= max(last - first, 0)
        if start < first * PIECE:
            self._add_fragment(first - 1, start, data[: min(first * PIECE, stop) - start])
        if last >= first and stop > last * PIECE and last < self._count():
            self._add_fragment(last, last * PIECE, data[last * PIECE - start :])

    def _count(self) -> int:
        return len(self._pieces)

    def _add_fragment(self, number: int, start: int, data: np.ndarray) -> None:
        size = min(PIECE, self._nbytes - number * PIECE)
        with self._lock:
            parts = self._fragments.setdefault(number, [])
            parts.append((start, data.tobytes()))
            if sum(len(part) for _, part in parts) < size:
                return
            del self._fragments[number]
        self._pieces[number] = self._hash(b"".join(part for _, part in sorted(parts)))
        with self._lock:
            self._left -= 1

    def text(self) -> str | None:
        """Returns the digest with its kind, as it is written down; None while bytes are missing."""
        with self._lock:
            if self._left:
                return None
        return f"{self._kind}:{self._hash(b''.join(self._pieces)).hex()}"


def kind_of(digest: str) -> str:
    """Returns the kind of a written digest."""
    return digest.partition(":")[0]


def digest_range(descriptor: int, offset: int, nbytes: int, kind: str = STRONG) -> str | None:
    """Returns the digest of a tensor that lies in an open file; None where the file ends inside it.

    Raises:
        OSError: it cannot be read.
    """
    digest, buffer = TensorDigest(nbytes, kind), np.empty(min(_CHUNK, nbytes), dtype=np.uint8)
    for start in range(0, nbytes, _CHUNK):
        part, done = buffer[: nbytes - start], 0
        while done < part.nbytes:
            got = os.preadv(descriptor, [memoryview(cast("Any", part[done:]))], offset + start + done)
            if not got:
                return None
            done += got
        digest.add(start, part)
    return digest.text()


def digest_stored(info: TensorInfo, kind: str = STRONG) -> str:
    """Returns the digest of a tensor as it lies in its file.

    Raises:
        CheckpointError: it cannot be read.
    """
    where = f"{info.file}: tensor '{printable(info.name)}'"
    try:
        descriptor = os.open(info.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            digest = digest_range(descriptor, info.offset, info.nbytes, kind)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror}; check the disk") from None
    if digest is None:
        raise CheckpointError(f"{where}: the file ends inside it; copy the file again")
    return digest


def digest_bytes(data: bytes) -> str:
    """Returns the plain digest of some bytes."""
    return f"blake3:{blake3(data).hexdigest()}"


def digest_file(file: Path, limit: int | None = None) -> str:
    """Returns the plain digest of a file, or of its first ``limit`` bytes."""
    state = blake3()
    for chunk in _chunks(file, limit):
        state.update(chunk)
    return f"blake3:{state.hexdigest()}"


def _chunks(file: Path, limit: int | None) -> Iterator[bytes]:
    left = os.stat(file).st_size if limit is None else limit
    with open(file, "rb") as stream:
        while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
            yield chunk
            left -= len(chunk)


def digest_header(file: Path) -> str:
    """Returns the plain digest of what a weight file says of itself.

    Of a safetensors file that is the header's length and the header; of a zip file of ``torch.save`` its
    ``data.pkl``, and its directory with a checksum of every entry.

    Raises:
        CheckpointError: a zip file is broken.
        OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        start = stream.read(9)
        if is_archive(start):
            archive = read_archive(file, stream.fileno())
            pickled = archive.find("data.pkl")
            parts = [(pickled.start, pickled.nbytes)] if pickled else []
            texts = [os.pread(stream.fileno(), n, at) for at, n in (*parts, archive.directory)]
            return digest_bytes(b"".join(texts))
    return digest_file(file, 8 + int.from_bytes(start[:8], "little"))
