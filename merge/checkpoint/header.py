"""The header of one safetensors file: read with suspicion, written in place.

Format: 8 bytes little-endian header length, a JSON object, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.dtypes import BY_CODE, DType
from merge_models.merge.errors import CheckpointError, did_you_mean

MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 64
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Attributes:
        name: the tensor's name.
        dtype: its storage dtype.
        shape: its dimensions; ``()`` for a scalar.
        file: the file that holds it.
        offset: where its bytes start in that file.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.size


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """Reads and checks a file's header; no tensor data is touched.

    Raises:
        CheckpointError: the file cannot be read, or is not what the format allows.
    """
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = _header_length(file, start, size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(text) != length:
        raise CheckpointError(f"{file}: ends inside its header; download or copy it again")
    fields = _parse(file, text)
    metadata = _metadata(file, fields.pop("__metadata__", {}))
    data_start = 8 + length
    tensors = {name: _tensor(file, name, field, data_start) for name, field in fields.items()}
    _check_layout(file, tensors, data_start, size)
    return Header(tensors, metadata)


def _header_length(file: Path, start: bytes, size: int) -> int:
    if start[:4] == _PICKLE_STARTS[0] or start[:2] in _PICKLE_STARTS:
        raise CheckpointError(
            f"{file}: is a pickle, not safetensors; load it with transformers and save_pretrained it"
        )
    if len(start) < 8:
        raise CheckpointError(f"{file}: {size} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{file}: claims a header of {length} bytes (at most {MAX_HEADER}); not a safetensors file?"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{file}: truncated: its header should be {length} bytes, the file has {size};"
            " download or copy it again"
        )
    return length


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{file}: header names '{printable(twice)}' twice")
        return found

    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file}: header is not valid JSON; not a safetensors file?") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: header is not a JSON object; not a safetensors file?")
    return fields


def _metadata(file: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{file}: header's __metadata__ is not a map of strings")
    return value


def _tensor(file: Path, name: str, field: Any, data_start: int) -> TensorInfo:
    where = f"{file}: tensor '{printable(name)}'"
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: header entry must have dtype, shape and data_offsets")
    dtype = BY_CODE.get(field["dtype"]) if isinstance(field["dtype"], str) else None
    if dtype is None:
        hint = did_you_mean(str(field["dtype"])[:20], BY_CODE)
        raise CheckpointError(f"{where}: unknown dtype {printable(str(field['dtype']))[:20]!r}{hint}")
    shape = field["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where}: shape is not a list of sizes")
    offsets = field["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: data_offsets is not a pair of sizes")
    info = TensorInfo(name, dtype, tuple(shape), file, data_start + offsets[0])
    if info.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where}: {dtype.code} of shape {list(shape)} takes {info.nbytes} bytes,"
            f" its offsets span {offsets[1] - offsets[0]}"
        )
    return info


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _check_layout(file: Path, tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    position = start
    for info in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        name = printable(info.name)
        if info.offset + info.nbytes > size:
            raise CheckpointError(
                f"{file}: tensor '{name}' ends at byte {info.offset + info.nbytes}, the file at {size};"
                " it is truncated: download or copy it again"
            )
        if info.offset < position:
            raise CheckpointError(f"{file}: tensor '{name}' overlaps the tensor before it")
        if info.offset > position:
            raise CheckpointError(f"{file}: {info.offset - position} stray bytes before '{name}'")
        position += info.nbytes
    if position != size:
        raise CheckpointError(f"{file}: {size - position} bytes after its last tensor are unaccounted for")


def printable(text: str, limit: int = 120) -> str:
    """Text from a file, safe to show: no control characters, bounded length."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + "…"


def encode_header(tensors: list[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file that holds these tensors one after the other, padded to 8 bytes."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        count = 1
        for extent in shape:
            count *= extent
        end = position + count * dtype.size
        fields[name] = {"dtype": dtype.code, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
