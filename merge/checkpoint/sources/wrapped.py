"""A view: a model read through another, which changes one thing and leaves the rest as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.sources.source import DiskSource


class WrappedSource:
    """A source around a source. Subclasses override what they change; everything else is the model's own.

    Args:
        model: the model.
        label: how the user calls the view; as the model by default.
        tensors: what it has; the model's by default. A view that names others must ``read`` them.
        config: its config.json; the model's by default.
    """

    def __init__(
        self,
        model: DiskSource,
        *,
        label: str | None = None,
        tensors: Mapping[str, TensorInfo] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._label = model.label if label is None else label
        self._tensors = model.tensors if tensors is None else tensors
        self._config = model.config if config is None else config

    @property
    def label(self) -> str:
        """How the user calls it."""
        return self._label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json, or an empty map."""
        return self._config

    @property
    def path(self) -> Path:
        """The folder or file that config and other small files are taken from."""
        return self._model.path

    @property
    def folder(self) -> Path:
        """That folder."""
        return self._model.folder

    @property
    def tokenizer_folder(self) -> Path:
        """The folder that the tokenizer is taken from."""
        return self._model.tokenizer_folder

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every place that is read."""
        return self._model.paths

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return self._model.files

    @property
    def metadata(self) -> Mapping[str, str]:
        """The first file's header metadata."""
        return self._model.metadata

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored, not of what reading gives."""
        return self._model.nbytes

    @property
    def kept_bytes(self) -> int:
        """Bytes that reading keeps in memory."""
        return self._model.kept_bytes

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Reads bytes ``start`` to ``stop`` of a tensor."""
        return self._model.read(info, start, stop, buffer)

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        """Returns what lies in files of all that reading a tensor takes bytes from."""
        return self._model.stored(info)

    def check_unchanged(self) -> None:
        """Raises ChangedError where a file is no longer what it was when its header was read."""
        self._model.check_unchanged()

    def close(self) -> None:
        """Closes the files that reading has opened."""
        self._model.close()
