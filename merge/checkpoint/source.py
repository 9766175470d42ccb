"""Parents: where tensors come from. A folder, one file, or a state dict in memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_TORCH_NAME
from merge_models.merge.checkpoint.header import TensorInfo, printable, read_header
from merge_models.merge.checkpoint.hub import resolve
from merge_models.merge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_JSON = 64 << 20
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
    """

    label: str
    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    metadata: dict[str, str]
    _descriptors: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The folder with config and tokenizer (that of the file, where one file was named)."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Reads bytes ``start`` to ``stop`` of a tensor into ``buffer``.

        Raises:
            CheckpointError: the file cannot be read there (it may have shrunk since it was opened).
        """
        view = memoryview(buffer[: stop - start])
        position, done = info.offset + start, 0
        descriptor = self._descriptor(info.file)
        while done < len(view):
            try:
                got = os.preadv(descriptor, [view[done:]], position + done)
            except OSError as error:
                raise CheckpointError(
                    f"{info.file}: tensor '{printable(info.name)}' cannot be read: {error.strerror}"
                ) from None
            if got == 0:
                raise CheckpointError(
                    f"{info.file}: ended inside tensor '{printable(info.name)}'; did it change meanwhile?"
                )
            done += got
        return buffer[: stop - start]

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                try:
                    self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(f"{file}: cannot be opened: {error.strerror}") from None
            return self._descriptors[file]

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
    files = weight_files(path)
    headers = [read_header(file) for file in files]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for key, info in header.tensors.items():
            if key in tensors:
                raise CheckpointError(
                    f"{path}: tensor '{printable(key)}' is in both {tensors[key].file.name}"
                    f" and {info.file.name}"
                )
            tensors[key] = info
    _check_index(path, tensors)
    config = read_json(path / "config.json") if path.is_dir() else {}
    return Checkpoint(os.fspath(name), path, tuple(files), tensors, config, headers[0].metadata)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint: as transformers looks, a single file before an index.

    Raises:
        CheckpointError: there are none, or the index names files that it may not or that are missing.
    """
    if path.is_file():
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
        names = ", ".join(file.name for file in found[:4])
        raise CheckpointError(
            f"{path}: several weight files ({names}) and no index; name one file, or add the index"
        )
    pickles = sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.ckpt")])
    if pickles:
        raise CheckpointError(
            f"{path}: only pickled weights ({pickles[0].name}), which are not opened; convert them:"
            " AutoModel.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors"
        )
    raise CheckpointError(f"{path}: no .safetensors file in this folder")


def _index_file(path: Path) -> Path | None:
    if (path / f"model{_INDEX_SUFFIX}").is_file():
        return path / f"model{_INDEX_SUFFIX}"
    found = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
    if len(found) > 1:
        raise CheckpointError(f"{path}: several indexes ({', '.join(f.name for f in found[:3])})")
    return found[0] if found else None


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    strings = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
    if not strings or not found:
        raise CheckpointError(f"{index}: has no weight_map from tensor names to file names")
    return found


def _files_of_index(path: Path, index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        shown = printable(name)
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: names '{shown}', which is outside its folder; refused")
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: names '{shown}', which is not a .safetensors file")
        if not (path / name).is_file():
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
                f"{index}: says that '{printable(name)}' is in {printable(file)}, which does not hold it"
            )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; ``{}`` where the file does not exist.

    Raises:
        CheckpointError: it is too large, unreadable, or not a JSON object.
    """
    try:
        with open(file, "rb") as stream:
            text = stream.read(MAX_JSON + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{file}: larger than {MAX_JSON >> 20} MiB; refused")
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file}: is not valid JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: is not a JSON object")
    return value


class StateDict:
    """A state dict in memory, read as a checkpoint is."""

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self.label = label
        self.config: Mapping[str, Any] = {}
        self._tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        self.tensors = {name: self._describe(name, t) for name, t in self._tensors.items()}

    def _describe(self, name: str, tensor: Tensor) -> TensorInfo:
        dtype = BY_TORCH_NAME.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout.__repr__() != "torch.strided":
            raise CheckpointError(
                f"{self.label}: tensor '{name}' is {tensor.dtype} ({tensor.layout}), which is not supported"
            )
        return TensorInfo(name, dtype, tuple(tensor.shape), Path(self.label), 0)

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Bytes ``start`` to ``stop`` of a tensor, in place where it is contiguous in main memory."""
        del buffer
        import torch

        size = info.dtype.size
        flat = self._tensors[info.name].reshape(-1)[start // size : stop // size].cpu()
        return flat.contiguous().view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
