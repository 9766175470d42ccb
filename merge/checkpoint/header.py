"""The header of one safetensors file: read with suspicion, written in place.

Format: 8 bytes little-endian header length, a JSON object, then the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.dtypes import BY_CODE, DType
from merge_models.merge.checkpoint.guard import parse_json
from merge_models.merge.errors import CheckpointError
from merge_models.merge.errors import printable as printable

MAX_HEADER = 100_000_000
MAX_DIMENSIONS = 64
MAX_NAME = 1000
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
ALLOW_PICKLE = "merge, run and plan read files of torch.save with --allow-pickle (allow_pickle=True)"
NO_GGUF = "which is not supported as an input; convert it to safetensors first, or take the original model"
_AGAIN = "download or save it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Attributes:
        name: the tensor's name.
        dtype: its storage dtype.
        shape: its dimensions; ``()`` for a scalar.
        file: the file that holds it.
        offset: where its bytes start in that file.
        stored_as: the dtype that its checkpoint has, where reading gives a wider one (sums not yet rounded).
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: Path
    offset: int
    stored_as: DType | None = None

    @property
    def own_dtype(self) -> DType:
        """The dtype to write it in where nothing else is asked for."""
        return self.stored_as or self.dtype

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
    """What a safetensors file says it holds, and what the file was then."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    stamp: tuple[int, ...]


def stamp(file: int | Path) -> tuple[int, ...]:
    """Returns what tells whether a file, open or by its path, is still the one that it was: identity, size,
    time of change."""
    now = os.stat(file)
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def read_header(file: Path) -> Header:
    """Reads and checks a file's header; no tensor data is touched.

    Raises:
        CheckpointError: the file cannot be read, or is not what the format allows.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise CheckpointError(f"{file}: is not a regular file; name a .safetensors file")
        with open(file, "rb") as stream:
            seen = stamp(stream.fileno())
            size = seen[2]
            start = stream.read(8)
            length = _header_length(file, start, size)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(text) != length:
        raise CheckpointError(f"{file}: ends inside its header; {_AGAIN}")
    if not text.startswith(b"{"):
        _refuse_other_formats(file, start)
    fields = _parse(file, text)
    metadata = _metadata(file, fields.pop("__metadata__", {}))
    data_start = 8 + length
    tensors = {name: _tensor(file, name, field, data_start) for name, field in fields.items()}
    _check_layout(file, tensors, data_start, size)
    return Header(tensors, metadata, seen)


def _refuse_other_formats(file: Path, start: bytes) -> None:
    """Names what else a file may be. First bytes alone prove nothing: a header may be 0x280 bytes long."""
    if start.startswith(_PICKLE_STARTS):
        may = f"{ALLOW_PICKLE}, or " if file.suffix in PICKLE_SUFFIXES else ""
        raise CheckpointError(
            f"{file}: is a pickle, not safetensors; {may}load it with transformers and save_pretrained it"
        )
    if start.startswith(b"GGUF"):
        raise CheckpointError(f"{file}: is a GGUF file, {NO_GGUF}")
    if start == b"version ":
        raise CheckpointError(f"{file}: is a Git LFS pointer, not the weights; run 'git lfs pull' beside it")


def _header_length(file: Path, start: bytes, size: int) -> int:
    if len(start) < 8:
        raise CheckpointError(f"{file}: {size} bytes are too few for a safetensors file; {_AGAIN}")
    (length,) = struct.unpack("<Q", start)
    if length > min(MAX_HEADER, size - 8):
        _refuse_other_formats(file, start)
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{file}: is not a safetensors file (its header would be {length} bytes long);"
            " name a folder or a .safetensors file"
        )
    if length > size - 8:
        raise CheckpointError(
            f"{file}: truncated: its header should be {length} bytes, the file has {size}; {_AGAIN}"
        )
    return length


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(f"{file}: header names '{printable(name)}' twice; {_AGAIN}")
            found[name] = value
        return found

    try:
        fields = parse_json(text, unique)
    except ValueError:
        raise CheckpointError(f"{file}: header is not valid JSON; {_AGAIN}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: header is not a JSON object; {_AGAIN}")
    _check_unicode(file, fields)
    return fields


def _check_unicode(file: Path, texts: Iterable[str]) -> None:
    """JSON can spell half a surrogate pair, which no file can hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{file}: header is not valid Unicode; {_AGAIN}") from None


def _metadata(file: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CheckpointError(f"{file}: header's __metadata__ is not a map of strings; {_AGAIN}")
    _check_unicode(file, [*value, *value.values()])
    return value


def _tensor(file: Path, name: str, field: Any, data_start: int) -> TensorInfo:
    where = f"{file}: tensor '{printable(name)}'"
    if len(name) > MAX_NAME:
        raise CheckpointError(f"{where}: its name has {len(name)} letters, {MAX_NAME} are allowed; rename it")
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: header entry must have dtype, shape and data_offsets; {_AGAIN}")
    dtype = BY_CODE.get(field["dtype"]) if isinstance(field["dtype"], str) else None
    if dtype is None:
        shown = printable(str(field["dtype"]), 20)
        raise CheckpointError(f"{where}: unknown dtype '{shown}'; save it as one of {', '.join(BY_CODE)}")
    shape = field["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where}: shape is not a list of sizes; {_AGAIN}")
    offsets = field["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: data_offsets is not a pair of sizes; {_AGAIN}")
    info = TensorInfo(name, dtype, tuple(shape), file, data_start + offsets[0])
    if info.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where}: {dtype.code} of shape {printable(str(shape))} takes {printable(str(info.nbytes), 24)}"
            f" bytes, its offsets span {offsets[1] - offsets[0]}; {_AGAIN}"
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
                f" it is truncated: {_AGAIN}"
            )
        if info.offset < position:
            raise CheckpointError(f"{file}: tensor '{name}' overlaps the tensor before it; {_AGAIN}")
        if info.offset > position:
            gap = info.offset - position
            raise CheckpointError(f"{file}: {gap} stray bytes before tensor '{name}'; {_AGAIN}")
        position += info.nbytes
    if position != size:
        stray = size - position
        raise CheckpointError(f"{file}: {stray} stray bytes after its last tensor; {_AGAIN}")


def encode_header(tensors: list[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Returns the first bytes of a file that holds these tensors one after the other, padded to 8 bytes."""
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
