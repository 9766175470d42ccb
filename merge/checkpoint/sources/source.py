"""Parents: where tensors come from. What a source is, and a state dict in memory as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_TORCH_NAME
from merge_models.merge.checkpoint.header import (
    TensorInfo,
    printable,
)
from merge_models.merge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


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
        """Returns bytes ``start`` to ``stop`` of a tensor as uint8: in ``buffer``, or where they are."""
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
        """Returns what lies in files of all that reading a tensor takes bytes from; only ``info`` itself
        where reading gives a file's own bytes."""
        ...

    def check_unchanged(self) -> None:
        """Raises ChangedError where a file is no longer what it was when its header was read."""
        ...

    def close(self) -> None: ...


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
        """Returns bytes ``start`` to ``stop`` of a tensor, in place where it is contiguous in main memory."""
        del buffer
        import torch

        size = info.dtype.size
        flat = self._tensors[info.name].reshape(-1)[start // size : stop // size].cpu()
        return flat.contiguous().view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
