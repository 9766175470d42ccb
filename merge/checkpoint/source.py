"""Parents: where tensors come from. A folder, one file, or a state dict in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_TORCH_NAME
from merge_models.merge.checkpoint.guard import is_file
from merge_models.merge.checkpoint.guard import read_json as read_json
from merge_models.merge.checkpoint.header import NO_GGUF, TensorInfo, printable, read_header, stamp
from merge_models.merge.checkpoint.hub import resolve
from merge_models.merge.errors import ChangedError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_INDEX_SUFFIX = ".safetensors.index.json"


class Source(Protocol):
    """Something that has named tensors and gives their bytes."""

    @property
    def label(self) -> str:
        """How the user calls it."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json, or an empty map."""
        ...

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Bytes ``start`` to ``stop`` of a tensor as uint8: in ``buffer``, or where they are already."""
        ...


class DiskSource(Source, Protocol):
    """A source that lies in files: a checkpoint, or one that is read through another."""

    @property
    def path(self) -> Path:
        """The folder or file that config and other small files are taken from."""
        ...

    @property
    def folder(self) -> Path:
        """That folder (of the file, where one file was named)."""
        ...

    @property
    def tokenizer_folder(self) -> Path: ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every place that is read."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def nbytes(self) -> int: ...

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        """What lies in files of all that reading a tensor takes bytes from; only ``info`` itself where
        reading gives a file's own bytes."""
        ...

    def check_unchanged(self) -> None:
        """Raises ChangedError where a file is no longer what it was when its header was read."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors checkpoint on disk: its headers, and its bytes by block.

    Attributes:
        label: what the user typed.
        path: the folder or file.
        files: the weight files.
        tensors: every tensor by name, in the files' order.
        config: config.json's content, ``{}`` where there is none.
        metadata: the first file's header metadata.
        stamps: what each file was when its header was read.
    """

    label: str
    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    metadata: dict[str, str]
    stamps: dict[Path, tuple[int, ...]]
    _descriptors: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The folder with config and tokenizer (that of the file, where one file was named)."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Reads bytes ``start`` to ``stop`` of a tensor into ``buffer``.

        Raises:
            CheckpointError: the file cannot be read there (it may have shrunk since it was opened).
        """
        view = memoryview(cast("Any", buffer[: stop - start]))
        position, done = info.offset + start, 0
        descriptor = self._descriptor(info.file)
        while done < len(view):
            try:
                got = os.preadv(descriptor, [view[done:]], position + done)
            except OSError as error:
                raise CheckpointError(
                    f"{info.file}: tensor '{printable(info.name)}' cannot be read: {error.strerror};"
                    " check the disk, or copy the file again"
                ) from None
            if got == 0:
                raise ChangedError(
                    f"{info.file}: ended inside tensor '{printable(info.name)}': it changed meanwhile;"
                    " run it again when it is complete"
                )
            done += got
        return buffer[: stop - start]

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        return (info,)

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                try:
                    self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise ChangedError(f"{file}: has changed: it is no longer there; run it again") from None
                except OSError as error:
                    raise CheckpointError(f"{file}: cannot be opened: {error.strerror}") from None
                if stamp(self._descriptors[file]) != self.stamps[file]:
                    raise ChangedError(f"{file}: has changed since its header was read; run it again")
            return self._descriptors[file]

    def check_unchanged(self) -> None:
        """Checks that every file is the one whose header was read, under its name and where it was read.

        Raises:
            ChangedError: one was cut, rewritten, replaced or removed.
        """
        for file, seen in self.stamps.items():
            places: list[int | Path] = [file]
            with self._lock:
                places += [self._descriptors[file]] if file in self._descriptors else []
            for place in places:
                try:
                    same = stamp(place) == seen
                except OSError:
                    same = False
                if not same:
                    raise ChangedError(
                        f"{file}: has changed while it was read; run it again when it is complete"
                    )

    def close(self) -> None:
        """Closes the files that reading has opened."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()


def open_checkpoint(name: str | os.PathLike[str]) -> Checkpoint:
    """Opens a folder, a ``.safetensors`` file or a Hub id; reads headers only.

    Raises:
        CheckpointError: it is not there, holds no safetensors, or its headers are wrong.
    """
    path = resolve(name)
    try:
        files = weight_files(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    headers = [read_header(file) for file in files]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for key, info in header.tensors.items():
            if key in tensors:
                raise CheckpointError(
                    f"{path}: tensor '{printable(key)}' is in both {tensors[key].file.name}"
                    f" and {info.file.name}; save the model again"
                )
            tensors[key] = info
    _check_index(path, tensors)
    config = read_json(path / "config.json") if path.is_dir() else {}
    stamps = {file: header.stamp for file, header in zip(files, headers, strict=True)}
    return Checkpoint(os.fspath(name), path, tuple(files), tensors, config, headers[0].metadata, stamps)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: as transformers looks, a single file before an index.

    Raises:
        CheckpointError: there are none, or the index names files that it may not or that are missing.
    """
    if not path.is_dir():
        return [path]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = _index_file(path)
    if index is not None:
        return _files_of_index(path, index)
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        names = ", ".join(printable(file.name) for file in found[:4])
        raise CheckpointError(
            f"{path}: several weight files ({names}) and no index; name one file, or add the index"
        )
    pickles = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.ckpt")])
    if pickles:
        raise CheckpointError(
            f"{path}: only pickled weights ({pickles[0].name}), which are not opened; convert them:"
            " AutoModel.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors"
        )
    if any(path.glob("*.gguf")):
        raise CheckpointError(f"{path}: holds GGUF weights only, {NO_GGUF}")
    deeper = next(iter(sorted(path.glob("*/*.safetensors"))), None)
    fix = f"did you mean {deeper.parent}?" if deeper else "name the folder that holds model.safetensors"
    raise CheckpointError(f"{path}: no .safetensors file in this folder; {fix}")


def _index_file(path: Path) -> Path | None:
    if (path / f"model{_INDEX_SUFFIX}").is_file():
        return path / f"model{_INDEX_SUFFIX}"
    found = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(printable(file.name) for file in found[:3])
        raise CheckpointError(f"{path}: several indexes ({names}); leave one, or name one weight file")
    return found[0] if found else None


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    strings = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
    if not strings or not found:
        raise CheckpointError(
            f"{index}: has no weight_map from tensor names to file names; download it again"
        )
    return found


def _files_of_index(path: Path, index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        shown = printable(name)
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{index}: names '{shown}', which is outside its folder; refused: put all files beside it"
            )
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: names '{shown}', which is not a .safetensors file; convert it first"
            )
        if not is_file(path / name):
            raise CheckpointError(f"{index}: names '{shown}', which is missing; download it again")
    return [path / name for name in names]


def _check_index(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    files = {info.file.name for info in tensors.values()}
    index = None if not path.is_dir() or "model.safetensors" in files else _index_file(path)
    if index is None:
        return
    for name, file in _weight_map(index).items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(
                f"{index}: says that tensor '{printable(name)}' is in {printable(file)}, which does not"
                " hold it; download both again"
            )


class StateDict:
    """A state dict in memory, read as a checkpoint is."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self.label = label
        self.config: Mapping[str, Any] = {}
        import torch

        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                kind = "on the meta device" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise CheckpointError(
                    f"{label}: '{printable(str(name))}' is no tensor with values but {kind}; leave it out"
                )
        self.tensors = {name: self._describe(name, tensor) for name, tensor in tensors.items()}
        self._tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def _describe(self, name: str, tensor: Tensor) -> TensorInfo:
        dtype = BY_TORCH_NAME.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout.__repr__() != "torch.strided":
            raise CheckpointError(
                f"{self.label}: tensor '{printable(name)}' is {tensor.dtype} ({tensor.layout}), which is not"
                " supported; convert it first"
            )
        return TensorInfo(name, dtype, tuple(tensor.shape), Path(self.label), 0)

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Bytes ``start`` to ``stop`` of a tensor, in place where it is contiguous in main memory."""
        del buffer
        import torch

        size = info.dtype.size
        flat = self._tensors[info.name].reshape(-1)[start // size : stop // size].cpu()
        return flat.contiguous().view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
