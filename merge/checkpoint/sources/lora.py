"""A checkpoint with a LoRA adapter on it (``BASE+ADAPTER``), summed block by block as it is read.

PEFT's format: ``adapter_config.json`` says ranks and scales, ``adapter_model.safetensors`` holds two factors
per adapted matrix. Only the rows that a block covers are ever multiplied out; sums are not rounded to the
base's dtype, so a tensor with an adapter reads as F32 (F64 where its base is).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.sources.hub import resolve
from merge_models.merge.checkpoint.sources.lora_reading import CONFIG, AdapterReading, Bias, Factors
from merge_models.merge.checkpoint.sources.opening import open_checkpoint, open_weights
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from merge_models.merge.checkpoint.sources.wrapped import WrappedSource
from merge_models.merge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = "adapter_model.safetensors"
_KEPT_FACTORS = 8
Places = Mapping[str, Path | DiskSource]


class Adapted(WrappedSource):
    """A base checkpoint and an adapter, read as the model that they make together.

    Tensors that the adapter changes are F32 or F64 and know their stored dtype; the config is the base's,
    with the vocabulary's size where the adapter resizes it.

    Args:
        label: what the user typed.
        base: the base.
        adapter: the adapter's weights.
        settings: its adapter_config.json.
    """

    def __init__(
        self, label: str, base: DiskSource, adapter: Checkpoint, settings: Mapping[str, Any]
    ) -> None:
        reading = AdapterReading(base, adapter, settings)
        tensors: dict[str, TensorInfo] = {}
        borrowed = {name: replace(info, name=name) for name, info in reading.borrowed.items()}
        for name, info in {**base.tensors, **reading.replaced, **borrowed}.items():
            if name in reading.changes:
                wide = "F64" if info.dtype.code == "F64" else "F32"
                info = replace(info, dtype=BY_CODE[wide], stored_as=info.dtype)
            tensors[name] = info
        super().__init__(base, label=label, tensors=tensors, config=reading.config)
        self._base, self._adapter = base, adapter
        self._changes, self._borrowed = reading.changes, reading.borrowed
        self._factors: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's folder where it brings a tokenizer (it may have added tokens), else the base's."""
        own = self._adapter.folder
        return own if (own / "tokenizer_config.json").is_file() else self._base.tokenizer_folder

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*self._base.paths, self._adapter.folder)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self._base.files, *self._adapter.files)

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored, not of what reading gives."""
        return self._base.nbytes + self._adapter.nbytes

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        own = self._under(info)
        under = (own,) if info.file in self._adapter.files else self._base.stored(own)
        change = self._changes.get(info.name)
        if change is None:
            return under
        if isinstance(change, Bias):
            return (*under, change.vector)
        added = (change.left, change.right, *([change.magnitude] if change.magnitude else []))
        return (*under, *added)

    @property
    def kept_bytes(self) -> int:
        """Bytes of factors that are kept, in the sum's dtype, and of blocks that are added up."""
        sizes = [c.left.count + c.right.count for c in self._changes.values() if isinstance(c, Factors)]
        own = 8 * (_KEPT_FACTORS + 2) * max(sizes, default=0) + 8 * 4 * (1 << 18)
        return own + self._base.kept_bytes

    def check_unchanged(self) -> None:
        self._base.check_unchanged()
        self._adapter.check_unchanged()

    def close(self) -> None:
        self._base.close()
        self._adapter.close()

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Returns bytes ``start`` to ``stop`` of a tensor; for adapted ones those of the unrounded sum."""
        change = self._changes.get(info.name)
        if change is None:
            owner = self._adapter if info.file in self._adapter.files else self._base
            return owner.read(self._under(info), start, stop, buffer)
        size = info.dtype.size
        first, last = start // size, stop // size
        out = _as_tensor(buffer[: stop - start], info)
        if isinstance(change, Bias):
            out.copy_(self._stored(info, first, last))
            out.add_(self._values(change.vector).to(out.dtype)[first:last], alpha=change.scale)
        elif change.magnitude is None:
            out.copy_(self._stored(info, first, last))
            self._add(out, info, change, first)
        else:
            out.copy_(self._renormed(info, change, change.magnitude, first, last))
        return buffer[: stop - start]

    def _under(self, info: TensorInfo) -> TensorInfo:
        """The tensor that lies under the adapter's change, as its owner knows it."""
        return self._borrowed.get(info.name) or replace(info, dtype=info.own_dtype, stored_as=None)

    def _stored(self, info: TensorInfo, first: int, last: int) -> Tensor:
        """Elements of the tensor under the adapter."""
        own = self._under(info)
        size = own.dtype.size
        owner = self._adapter if info.file in self._adapter.files else self._base
        buffer = np.empty((last - first) * size, dtype=np.uint8)
        return _as_tensor(owner.read(own, first * size, last * size, buffer), own)

    def _add(self, out: Tensor, info: TensorInfo, change: Factors, first: int) -> None:
        """Adds the scaled product's elements from ``first`` on; rows that are cut are done by themselves."""
        left, right = self._pair(info, change)
        columns, at = right.shape[1], 0
        while at < out.numel():
            row, column = divmod(first + at, columns)
            if column == 0 and out.numel() - at >= columns:
                count = (out.numel() - at) // columns
                part = out[at : at + count * columns].view(count, columns)
                part.addmm_(left[row : row + count], right)
                at += count * columns
            else:
                count = min(columns - column, out.numel() - at)
                out[at : at + count] += left[row] @ right[:, column : column + count]
                at += count

    def _renormed(
        self, info: TensorInfo, change: Factors, magnitude: TensorInfo, first: int, last: int
    ) -> Tensor:
        """DoRA: every row of the sum, brought to its trained norm. Norms need whole rows."""
        columns = info.shape[-1]
        top, bottom = first // columns, -(-last // columns)
        total = self._stored(info, top * columns, bottom * columns).to(_torch_dtype(info))
        self._add(total, info, change, top * columns)
        rows = total.view(-1, columns)
        norms = rows.double().norm(dim=1)
        wanted = self._values(magnitude).reshape(-1)[top:bottom].double()
        scaled = rows * (wanted / norms).to(rows.dtype)[:, None]
        return scaled.view(-1)[first - top * columns : last - top * columns]

    def _pair(self, info: TensorInfo, change: Factors) -> tuple[Tensor, Tensor]:
        """Both factors as matrices in the sum's dtype, the scale in the left one; the last few are kept."""
        with self._lock:
            if info.name in self._factors:
                self._factors.move_to_end(info.name)
                return self._factors[info.name]
        dtype = _torch_dtype(info)
        left, right = (self._values(side).to(dtype) for side in (change.left, change.right))
        if change.transposed:
            left, right = left.T.contiguous(), right.T.contiguous()
        pair = (left.flatten(1) * change.scale, right.flatten(1).contiguous())
        with self._lock:
            self._factors[info.name] = pair
            while len(self._factors) > _KEPT_FACTORS:
                self._factors.popitem(last=False)
        return pair

    def _values(self, info: TensorInfo) -> Tensor:
        """A whole tensor of the adapter."""
        data = self._adapter.read(info, 0, info.nbytes, np.empty(info.nbytes, dtype=np.uint8))
        return _as_tensor(data, info).view(info.shape)


def _torch_dtype(info: TensorInfo) -> Any:
    import torch

    return getattr(torch, info.dtype.torch_name)


def _as_tensor(data: np.ndarray, info: TensorInfo) -> Tensor:
    import torch

    dtype = _torch_dtype(info)
    return torch.from_numpy(data).view(dtype) if data.nbytes else torch.empty(0, dtype=dtype)


def open_model(name: str, places: Places | None = None, *, allow_pickle: bool = False) -> DiskSource:
    """Opens a checkpoint, or a checkpoint with an adapter on it (``BASE+ADAPTER``); headers and configs only.

    Args:
        name: what the user typed.
        places: where models are that have names of their own: their folders, or themselves.
        allow_pickle: whether the checkpoint may be one of ``torch.save``; adapters never are.

    Raises:
        CheckpointError: something is not there, is not plain LoRA, or does not fit.
    """
    known = places or {}
    base_name, adapter = split_adapter(name, known)
    place = known.get(base_name, base_name)
    if isinstance(place, (str, Path)):
        base: DiskSource = replace(open_checkpoint(place, allow_pickle=allow_pickle), label=base_name)
    else:
        base = place
    return base if adapter is None else _open_adapted(name, base, known.get(adapter, adapter))


def _open_adapted(label: str, base: DiskSource, adapter: str | Path | DiskSource) -> Adapted:
    folder = resolve(adapter) if isinstance(adapter, (str, Path)) else adapter.folder
    settings = read_json(folder / CONFIG) if folder.is_dir() else {}
    if not settings:
        raise CheckpointError(f"{adapter}: has no {CONFIG}; name the folder of a LoRA adapter after the '+'")
    if not (folder / _WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = "only pickled weights, which are not opened" if pickled else f"no {_WEIGHTS}"
        raise CheckpointError(f"{adapter}: holds {reason}; save it again with PEFT, as safetensors")
    return Adapted(label, base, open_weights(folder / _WEIGHTS, str(folder)), settings)


def split_adapter(name: str, is_model: Container[str] = ()) -> tuple[str, str | None]:
    """Returns ``BASE+ADAPTER`` in two, or the name and None.

    A path that exists is never split, and among several places to split the first wins that leaves an
    existing path (or one of the names ``is_model``) before it.
    """
    if "+" not in name or name in is_model or _exists(name):
        return name, None
    cuts = [number for number, letter in enumerate(name) if letter == "+"]
    cut = next((c for c in cuts if name[:c] in is_model or _exists(name[:c])), cuts[0])
    return name[:cut], name[cut + 1 :]


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):
        return False
