"""Parents: where tensors come from. A folder, one file, or a state dict in memory."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_TORCH_NAME
from merge_models.merge.checkpoint.guard import is_file
from merge_models.merge.checkpoint.guard import read_json as read_json
from merge_models.merge.checkpoint.header import (
    ALLOW_PICKLE,
    NO_GGUF,
    PICKLE_SUFFIXES,
    TensorInfo,
    printable,
    read_header,
    stamp,
)
from merge_models.merge.checkpoint.hub import resolve
from merge_models.merge.errors import ChangedError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_INDEX_SUFFIX, _PICKLED_INDEX = ".safetensors.index.json", "pytorch_model.bin.index.json"
_ADAPTER, _ADAPTER_CONFIG = "adapter_model", "adapter_config.json"
_ALONE = "is an adapter without its base model"
_FACTOR = re.compile(r"\.(lora_(embedding_)?[AB]|lora_down|lora_up|lora_magnitude_vector)(\.|$)")
_ADAPTER_PREFIX = "base_model.model."  # of all that PEFT saves, modules that were trained whole among them
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "*_states.pt")


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

    @property
    def kept_bytes(self) -> int:
        """Bytes that reading keeps in memory."""
        ...

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

    @property
    def kept_bytes(self) -> int:
        """Bytes that reading keeps in memory: none."""
        return 0

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


def open_checkpoint(name: str | os.PathLike[str], *, allow_pickle: bool = False) -> Checkpoint:
    """Opens a folder, a weight file or a Hub id; reads headers only.

    Args:
        name: the folder, file or Hub id.
        allow_pickle: open files of ``torch.save`` too (``.bin``, ``.pt``, ``.pth``), with
            ``weights_only=True``.

    Raises:
        CheckpointError: it is not there, holds no weights that may be opened, or its headers are wrong; or
            it is an adapter, which is no model without its base.
    """
    path = resolve(name, allow_pickle=allow_pickle)
    named = path.name.startswith(f"{_ADAPTER}.") and (path.parent / _ADAPTER_CONFIG).is_file()
    if named and not path.is_dir():
        raise CheckpointError(_adapter_alone(path, os.fspath(name)))
    opened = open_weights(path, os.fspath(name), allow_pickle=allow_pickle)
    unmerged = why_no_model(opened.tensors)
    if unmerged == _ALONE:
        raise CheckpointError(_adapter_alone(path, os.fspath(name)))
    if unmerged:
        raise CheckpointError(f"{path}: {unmerged}; call PEFT's merge_and_unload(), and save it again")
    return opened


def open_weights(path: Path, label: str, *, allow_pickle: bool = False) -> Checkpoint:
    """The same of anything that has tensors, an adapter's file among it."""
    try:
        files = weight_files(path, label, allow_pickle=allow_pickle)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    if allow_pickle and files[0].suffix in PICKLE_SUFFIXES:
        from merge_models.merge.checkpoint.pickled import PickledCheckpoint, is_pickled, read_pickled

        if is_pickled(files[0]):
            read = [read_pickled(file) for file in files]
            tensors = _joined(path, [pickled.tensors for pickled in read])
            stamps = {file: pickled.stamp for file, pickled in zip(files, read, strict=True)}
            views = {key: view for pickled in read for key, view in pickled.views.items()}
            config = read_json(path / "config.json") if path.is_dir() else {}
            opened = PickledCheckpoint(label, path, tuple(files), tensors, config, {}, stamps, views=views)
            return cast("Checkpoint", opened)  # type checkers know this very module by two names
    headers = [read_header(file) for file in files]
    tensors = _joined(path, [header.tensors for header in headers])
    config = read_json(path / "config.json") if path.is_dir() else {}
    stamps = {file: header.stamp for file, header in zip(files, headers, strict=True)}
    return Checkpoint(label, path, tuple(files), tensors, config, headers[0].metadata, stamps)


def why_no_model(names: Collection[str]) -> str:
    """Why tensors of these names are not a model's: low-rank factors, of which no mean means anything, and no
    model, or one that they are not yet added to. Empty for a model's, whose architecture may have factors."""
    others = [name for name in names if not _FACTOR.search(name) and not name.endswith(".alpha")]
    if len(others) == len(names) or not all(name.startswith(_ADAPTER_PREFIX) for name in others):
        return ""
    if any(".base_layer." in name for name in others):
        return "has an adapter in it that is not merged"
    return _ALONE


def _adapter_alone(path: Path, label: str) -> str:
    """What to do with an adapter that was given as a model, which the user calls ``label``."""
    folder = path if path.is_dir() else path.parent
    base = read_json(folder / _ADAPTER_CONFIG).get("base_model_name_or_path")
    named = isinstance(base, str) and base != ""
    pair = f"{printable(str(base)) if named else 'BASE'}+{label if path.is_dir() else folder}"
    whose = f" (the base that its {_ADAPTER_CONFIG} names)" if named else ""
    return f"{label}: {_ALONE}; write {pair}{whose}"


def _joined(path: Path, files: Sequence[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of all files of a checkpoint."""
    tensors: dict[str, TensorInfo] = {}
    for found in files:
        for key, info in found.items():
            if key in tensors:
                raise CheckpointError(
                    f"{path}: tensor '{printable(key)}' is in both {tensors[key].file.name}"
                    f" and {info.file.name}; save the model again"
                )
            tensors[key] = info
    _check_index(path, tensors)
    return tensors


def weight_files(path: Path, label: str = "", *, allow_pickle: bool = False) -> list[Path]:
    """The weight files of a checkpoint: as transformers looks, a single file before an index.

    Pickles are found only where they are allowed and there are no safetensors.

    Raises:
        CheckpointError: there are none, or the index names files that it may not or that are missing.
    """
    if not path.is_dir():
        return [path]
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = _index_file(path)
    if index is not None:
        return _files_of_index(path, index, (".safetensors",))
    adapters = [file for file in path.glob(f"{_ADAPTER}*") if (path / _ADAPTER_CONFIG).is_file()]
    found = sorted(file for file in path.glob("*.safetensors") if file not in adapters)
    if len(found) == 1:
        return found
    if found:
        names = ", ".join(printable(file.name) for file in found[:4])
        raise CheckpointError(
            f"{path}: several weight files ({names}) and no index; name one file, or add the index"
        )
    pickles = [file for suffix in PICKLE_SUFFIXES for file in path.glob(f"*{suffix}")]
    pickles = sorted(file for file in pickles if file not in adapters)
    if adapters and not any(_may_be_weights(file) for file in pickles):
        raise CheckpointError(_adapter_alone(path, label or str(path)))
    if pickles and allow_pickle:
        return _pickled_files(path, pickles)
    if pickles:
        raise CheckpointError(
            f"{path}: only pickled weights ({printable(pickles[0].name)}); {ALLOW_PICKLE}, or convert them:"
            " AutoModel.from_pretrained(FOLDER).save_pretrained(NEW) writes safetensors"
        )
    if any(path.glob("*.gguf")):
        raise CheckpointError(f"{path}: holds GGUF weights only, {NO_GGUF}")
    deeper = next(iter(sorted(path.glob("*/*.safetensors"))), None)
    fix = f"did you mean {deeper.parent}?" if deeper else "name the folder that holds model.safetensors"
    raise CheckpointError(f"{path}: no .safetensors file in this folder; {fix}")


def _pickled_files(path: Path, found: list[Path]) -> list[Path]:
    """The same of a folder with files of ``torch.save``: what a training run keeps beside does not count."""
    if (path / "pytorch_model.bin").is_file():
        return [path / "pytorch_model.bin"]
    if (path / _PICKLED_INDEX).is_file():
        return _files_of_index(path, path / _PICKLED_INDEX, PICKLE_SUFFIXES)
    weights = [file for file in found if _may_be_weights(file)]
    if len(weights) != 1:
        names = ", ".join(printable(file.name) for file in weights[:4]) or "none is a model's"
        raise CheckpointError(f"{path}: several pickled files and no index ({names}); name one file")
    return weights


def _may_be_weights(file: Path) -> bool:
    return not any(map(file.match, _NO_WEIGHTS))


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


def _files_of_index(path: Path, index: Path, suffixes: tuple[str, ...]) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        shown = printable(name)
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(
                f"{index}: names '{shown}', which is outside its folder; refused: put all files beside it"
            )
        if not name.endswith(suffixes):
            raise CheckpointError(
                f"{index}: names '{shown}', which is not a {suffixes[0]} file; convert it first"
            )
        if not is_file(path / name):
            raise CheckpointError(f"{index}: names '{shown}', which is missing; download it again")
    return [path / name for name in names]


def _check_index(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    files = {info.file.name for info in tensors.values()}
    whole = not path.is_dir() or files & {"model.safetensors", "pytorch_model.bin"}
    index = None if whole else _index_file(path)
    if index is None and not whole and (path / _PICKLED_INDEX).is_file():
        index = path / _PICKLED_INDEX
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
            if not isinstance(name, str):
                raise CheckpointError(f"{label}: {name!r} is no name of a tensor; names are texts")
            if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
                kind = "on the meta device" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise CheckpointError(
                    f"{label}: '{printable(str(name))}' is no tensor with values but {kind}; leave it out"
                )
        self.tensors = {name: self._describe(name, tensor) for name, tensor in tensors.items()}
        self._tensors = {name: tensor.detach().resolve_neg().contiguous() for name, tensor in tensors.items()}

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
