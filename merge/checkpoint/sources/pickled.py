"""Weights that ``torch.save`` wrote, read as a safetensors checkpoint is: by block, from where they lie.

Nothing that a file says is run: ``torch.load(weights_only=True)`` builds dicts, lists, numbers and tensors,
here tensors without values. They tell names, dtypes, shapes and where in the zip file their bytes start; the
bytes are read like any other's.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE, BY_TORCH_NAME
from merge_models.merge.checkpoint.header import MAX_NAME, TensorInfo, printable, stamp
from merge_models.merge.checkpoint.sources.archive import MAX_PICKLE, Archive, is_archive, read_archive
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from merge_models.merge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_NESTED = ("state_dict", "model")
_KEPT = 2
_MAX_SPREAD, _SMALL = 4, 64 << 20
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
_CONVERT = "load it where you trust it and save it as safetensors"


@dataclass(frozen=True)
class _View:
    """A tensor whose elements do not lie one after the other.

    Attributes:
        span: the bytes from its first element to its last.
        strides: from one element to the next in each dimension, in elements.
    """

    span: TensorInfo
    strides: tuple[int, ...]


class PickledFile(NamedTuple):
    """What a file of ``torch.save`` holds, and what the file was then."""

    tensors: dict[str, TensorInfo]
    views: dict[str, _View]
    stamp: tuple[int, ...]

    def stored(self) -> dict[str, TensorInfo]:
        """Returns where the bytes of each tensor lie."""
        return {name: self.views[name].span if name in self.views else i for name, i in self.tensors.items()}


@dataclass(frozen=True)
class PickledCheckpoint(Checkpoint):
    """A checkpoint of ``torch.save`` on disk.

    Attributes:
        views: tensors whose elements do not lie one after the other. They are laid out when they are read;
            the last two are kept.
    """

    views: Mapping[str, _View] = field(default_factory=dict)
    _laid_out: OrderedDict[str, np.ndarray] = field(default_factory=OrderedDict, repr=False, compare=False)
    _layout_lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        return (self.views[info.name].span if info.name in self.views else info,)

    @property
    def kept_bytes(self) -> int:
        """Bytes of tensors that are kept laid out, and of one that is being laid out."""
        sizes = [self.tensors[name].nbytes for name in self.views]
        spans = [view.span.nbytes for view in self.views.values()]
        return (_KEPT + 1) * max(sizes, default=0) + max(spans, default=0)

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Returns bytes ``start`` to ``stop`` of a tensor in the order of its elements."""
        view = self.views.get(info.name)
        if view is None:
            return super().read(info, start, stop, buffer)
        with self._layout_lock:
            if info.name not in self._laid_out:
                self._laid_out[info.name] = self._lay_out(info, view)
            self._laid_out.move_to_end(info.name)
            while len(self._laid_out) > _KEPT:
                self._laid_out.popitem(last=False)
            buffer[: stop - start] = self._laid_out[info.name][start:stop]
        return buffer[: stop - start]

    def _lay_out(self, info: TensorInfo, view: _View) -> np.ndarray:
        size = info.dtype.size
        data = super().read(view.span, 0, view.span.nbytes, np.empty(view.span.nbytes, dtype=np.uint8))
        steps = [stride * size for stride in view.strides]
        elements = np.lib.stride_tricks.as_strided(data.view(f"u{size}"), info.shape, steps)
        return np.ascontiguousarray(elements).reshape(-1).view(np.uint8)

    def close(self) -> None:
        super().close()
        with self._layout_lock:
            self._laid_out.clear()


def is_pickled(file: Path) -> bool:
    """Returns whether a file's first bytes are those of a pickle or of a zip file."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(9)
    except OSError:
        return False
    return is_archive(start) or _is_legacy(start)


def _is_legacy(start: bytes) -> bool:
    """Whether it begins with a pickle's mark. A safetensors header of 0x280 bytes does too, and a brace."""
    return start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{"


def read_pickled(file: Path) -> PickledFile:
    """Finds the tensors of a file that ``torch.save`` wrote; their values are not read.

    The file holds a flat dict from names to tensors, or a dict whose ``state_dict`` or ``model`` is one.

    Raises:
        CheckpointError: the file cannot be read, holds anything but weights, or is not what it should be.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise CheckpointError(f"{file}: is not a regular file; name a file of torch.save")
        with open(file, "rb") as stream:
            seen = stamp(stream.fileno())
            archive = _checked_archive(file, stream)
            document = _load(file, stream)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    reading = _Reading(file, archive)
    for name, tensor in _state(file, document).items():
        reading.add(name, tensor)
    return PickledFile(reading.tensors, reading.views, seen)


def _checked_archive(file: Path, stream: IO[bytes]) -> Archive:
    start = stream.read(9)
    if not is_archive(start):
        if _is_legacy(start):
            raise CheckpointError(
                f"{file}: is a pickle in the format before PyTorch 1.6, which is not opened; where you trust"
                " it, convert it: torch.save(torch.load(FILE, weights_only=True), NEW)"
            )
        raise CheckpointError(f"{file}: is not a zip file as torch.save writes it; download it again")
    archive = read_archive(file, stream.fileno())
    pickled, order = archive.find("data.pkl"), archive.find("byteorder")
    if pickled is None:
        raise CheckpointError(f"{file}: is a zip file without data.pkl, no model of torch.save; {_CONVERT}")
    if pickled.nbytes > MAX_PICKLE:
        raise CheckpointError(
            f"{file}: its data.pkl has {pickled.nbytes} bytes, {MAX_PICKLE} are allowed; {_CONVERT}"
        )
    if len({entry.name.partition("/")[0] for entry in archive.entries}) > 1:
        raise CheckpointError(f"{file}: has more than one folder in its zip file; {_CONVERT}")
    if order is not None and os.pread(stream.fileno(), min(order.nbytes, 9), order.start) != b"little":
        raise CheckpointError(f"{file}: was saved on a big-endian machine; {_CONVERT}")
    stream.seek(0)
    return archive


def _load(file: Path, stream: IO[bytes]) -> Any:
    """The file's content, with tensors that have no values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return torch.load(stream, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # torch raises whatever a wrong pickle leads it to
        forbidden = _FORBIDDEN.search(str(error))
        reason = (
            f"wants to call {printable(forbidden[1])}" if forbidden else "is not a pickle of weights alone"
        )
        raise CheckpointError(f"{file}: {reason}; refused: nothing of it was run") from None


def _state(file: Path, document: Any) -> Mapping[str, Tensor]:
    """The dict of tensors that a file holds."""
    import torch

    if isinstance(document, Mapping):
        inner = [document[key] for key in _NESTED if isinstance(document.get(key), Mapping)]
        if len(inner) == 1:
            document = inner[0]
    if not isinstance(document, Mapping):
        kind = type(document).__name__
        raise CheckpointError(f"{file}: holds a {kind}, not a dict from names to tensors; {_CONVERT}")
    for name, value in document.items():
        if not isinstance(name, str) or len(name) > MAX_NAME:
            shown = printable(str(name)[:100])
            raise CheckpointError(f"{file}: key '{shown}' is not the name of a tensor; {_CONVERT}")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{file}: '{printable(name)}' is a {type(value).__name__}, not a tensor; a dict of tensors is"
                f" read, or one in {' or '.join(_NESTED)}: {_CONVERT}"
            )
    return document


class _Reading:
    """The tensors of one file, checked against the entries of its archive."""

    def __init__(self, file: Path, archive: Archive) -> None:
        self._file = file
        self._sizes = {entry.start: entry.nbytes for entry in archive.entries if "/data/" in entry.name}
        self.tensors: dict[str, TensorInfo] = {}
        self.views: dict[str, _View] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        where = f"{self._file}: tensor '{printable(name)}'"
        try:
            name.encode()
        except UnicodeEncodeError:
            raise CheckpointError(f"{where}: its name is not valid Unicode; {_CONVERT}") from None
        dtype = BY_TORCH_NAME.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or str(tensor.layout) != "torch.strided" or tensor.is_neg() or tensor.is_conj():
            raise CheckpointError(
                f"{where}: is {tensor.dtype} ({tensor.layout}), which is not supported; {_CONVERT}"
            )
        shape, first = tuple(tensor.shape), self._start(where, tensor)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        strides = tuple(tensor.stride())
        reach = 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        skipped = int(tensor.storage_offset()) * dtype.size if count else 0
        nbytes = reach * dtype.size if count else 0
        if min(skipped, *strides, 0) < 0 or (count and skipped + nbytes > self._sizes[first]):
            raise CheckpointError(f"{where}: ends outside its zip entry; download it again")
        info = TensorInfo(name, dtype, shape, self._file, first + skipped)
        self.tensors[name] = info
        if count and not tensor.is_contiguous():
            self._add_view(where, info, nbytes, strides)

    def _add_view(self, where: str, info: TensorInfo, nbytes: int, strides: tuple[int, ...]) -> None:
        if info.nbytes > nbytes:
            raise CheckpointError(f"{where}: repeats its elements (expand); save tensor.contiguous()")
        if nbytes > max(_SMALL, _MAX_SPREAD * info.nbytes):
            raise CheckpointError(f"{where}: is scattered over a larger one; save tensor.contiguous()")
        span = TensorInfo(info.name, BY_CODE["U8"], (nbytes,), info.file, info.offset)
        self.views[info.name] = _View(span, strides)

    def _start(self, where: str, tensor: Tensor) -> int:
        """Where the bytes of a tensor's storage start in the file."""
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            raise CheckpointError(
                f"{where}: this version of torch does not tell where it lies; install torch 2.7 or newer"
            )
        if start not in self._sizes:
            raise CheckpointError(f"{where}: is not in an entry of its zip file; download it again")
        return start
