"""A checkpoint with a LoRA adapter on it (``BASE+ADAPTER``), summed block by block as it is read.

PEFT's format: ``adapter_config.json`` says ranks and scales, ``adapter_model.safetensors`` holds two factors
per adapted matrix. Only the rows that a block covers are ever multiplied out; sums are not rounded to the
base's dtype, so a tensor with an adapter reads as F32 (F64 where its base is).
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.checkpoint.guard import is_simple
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.hub import resolve
from merge_models.merge.checkpoint.sidecars import resized_config
from merge_models.merge.checkpoint.source import (
    Checkpoint,
    DiskSource,
    open_checkpoint,
    open_weights,
    read_json,
)
from merge_models.merge.checkpoint.tied import EMBEDDINGS, HEADS, untied
from merge_models.merge.checkpoint.tied_head import TiedHead, tied_head
from merge_models.merge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<end>weight|bias))?"
)
_KEPT_FACTORS = 8
_REBASED = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
Places = Mapping[str, Path | DiskSource]
_REFUSED = {
    "target_parameters": "adapts bare parameters",
    "layer_replication": "repeats layers",
    "trainable_token_indices": "trains single tokens",
    "use_qalora": "is a QA-LoRA",
    "alora_invocation_tokens": "is an activated LoRA, which no merge can hold",
}


@dataclass(frozen=True)
class _Factors:
    """What an adapter adds to a tensor: ``left @ right``, whose product has the tensor's rows and columns.

    Attributes:
        left, right: the factors as the adapter stores them: A or B, by the tensor's orientation.
        transposed: whether both are stored the other way round.
        scale: what the product is multiplied by.
        magnitude: DoRA's norms, one for each row of the sum; None for plain LoRA.
    """

    left: TensorInfo
    right: TensorInfo
    transposed: bool
    scale: float
    magnitude: TensorInfo | None = None


@dataclass(frozen=True)
class _Bias:
    """What ``lora_bias`` adds to a bias vector."""

    vector: TensorInfo
    scale: float


class Adapted:
    """A base checkpoint and an adapter, read as the model that they make together.

    Attributes:
        label: what the user typed.
        path: the base's folder or file.
        tensors: every tensor; those that the adapter changes are F32 or F64 and know their stored dtype.
        config: the base's config.json, with the vocabulary's size where the adapter resizes it.
        metadata: the base's.
    """

    def __init__(
        self, label: str, base: DiskSource, adapter: Checkpoint, settings: Mapping[str, Any]
    ) -> None:
        self.label = label
        self.path = base.path
        self.metadata = base.metadata
        self._base, self._adapter = base, adapter
        reading = _AdapterReading(base, adapter, settings)
        self._changes, self._borrowed = reading.changes, reading.borrowed
        self.tensors: dict[str, TensorInfo] = {}
        borrowed = {name: replace(info, name=name) for name, info in reading.borrowed.items()}
        for name, info in {**base.tensors, **reading.replaced, **borrowed}.items():
            if name in reading.changes:
                wide = "F64" if info.dtype.code == "F64" else "F32"
                info = replace(info, dtype=BY_CODE[wide], stored_as=info.dtype)
            self.tensors[name] = info
        self.config: dict[str, Any] = reading.config
        self._factors: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        return self._base.folder

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
        if isinstance(change, _Bias):
            return (*under, change.vector)
        added = (change.left, change.right, *([change.magnitude] if change.magnitude else []))
        return (*under, *added)

    @property
    def kept_bytes(self) -> int:
        """Bytes of factors that are kept, in the sum's dtype, and of blocks that are added up."""
        sizes = [c.left.count + c.right.count for c in self._changes.values() if isinstance(c, _Factors)]
        own = 8 * (_KEPT_FACTORS + 2) * max(sizes, default=0) + 8 * 4 * (1 << 18)
        return own + getattr(self._base, "kept_bytes", 0)

    def check_unchanged(self) -> None:
        self._base.check_unchanged()
        self._adapter.check_unchanged()

    def close(self) -> None:
        self._base.close()
        self._adapter.close()

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Bytes ``start`` to ``stop`` of a tensor; for adapted ones those of the unrounded sum."""
        change = self._changes.get(info.name)
        if change is None:
            owner = self._adapter if info.file in self._adapter.files else self._base
            return owner.read(self._under(info), start, stop, buffer)
        size = info.dtype.size
        first, last = start // size, stop // size
        out = _as_tensor(buffer[: stop - start], info)
        if isinstance(change, _Bias):
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

    def _add(self, out: Tensor, info: TensorInfo, change: _Factors, first: int) -> None:
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
        self, info: TensorInfo, change: _Factors, magnitude: TensorInfo, first: int, last: int
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

    def _pair(self, info: TensorInfo, change: _Factors) -> tuple[Tensor, Tensor]:
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
    settings = read_json(folder / _CONFIG) if folder.is_dir() else {}
    if not settings:
        raise CheckpointError(f"{adapter}: has no {_CONFIG}; name the folder of a LoRA adapter after the '+'")
    if not (folder / _WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        reason = "only pickled weights, which are not opened" if pickled else f"no {_WEIGHTS}"
        raise CheckpointError(f"{adapter}: holds {reason}; save it again with PEFT, as safetensors")
    return Adapted(label, base, open_weights(folder / _WEIGHTS, str(folder)), settings)


class _AdapterReading:
    """What an adapter does to each tensor of a base, checked.

    Attributes:
        changes: what is added, by the base's tensor names.
        replaced: tensors that the adapter holds whole, under the base's names.
        borrowed: heads that are the base's embedding, and no longer the model's.
        config: the base's config.json, changed where the adapter resizes the vocabulary or unties the head.
    """

    def __init__(self, base: DiskSource, adapter: Checkpoint, settings: Mapping[str, Any]) -> None:
        self._base, self._adapter, self._settings = base, adapter, settings
        self._where = str(adapter.folder)
        self.changes: dict[str, _Factors | _Bias] = {}
        self.replaced: dict[str, TensorInfo] = {}
        self.borrowed: dict[str, TensorInfo] = {}
        self.config = dict(base.config)
        self._known, tied = dict(base.tensors), tied_head(base)
        if tied is not None:
            self._known.setdefault(tied.name, replace(tied.embedding, name=tied.name))
        self._check_settings()
        modules: dict[str, dict[str, TensorInfo]] = {}
        for name, info in adapter.tensors.items():
            found = _FACTOR.fullmatch(name)
            if found is None:
                self._replace(name, info)
            else:
                end = ".bias" if found["end"] == "bias" else ""
                modules.setdefault(found["module"], {})[found["kind"] + end] = info
        self._square = self._squares_transposed(modules)
        for module, parts in modules.items():
            self._adapt(module, parts)
        if tied is not None:
            self._settle_head(tied)

    def _check_settings(self) -> None:
        kind = self._settings.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(
                f"{self._where}: is a {printable(str(kind))} adapter; only LoRA can be merged here"
            )
        for key, what in _REFUSED.items():
            if self._settings.get(key):
                raise CheckpointError(f"{self._where}: {what} ({key}); merge it with PEFT first")
        start = self._settings.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_REBASED):
            raise CheckpointError(
                f"{self._where}: was trained on a changed base (init_lora_weights: {printable(start)}); save"
                " it with PEFT's path_initial_model_for_weight_conversion first"
            )

    def _base_name(self, name: str) -> str | None:
        """The base's name of a tensor: the same, or the same but for leading modules where that is unique."""
        if name in self._known:
            return name
        near = [n for n in self._known if n.endswith(f".{name}") or name.endswith(f".{n}")]
        return near[0] if len(near) == 1 else None

    def _misfit(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self._where}: adapter tensor '{printable(name)}' {why} {self._base.label};"
            " was it trained on this base?"
        )

    def _replace(self, name: str, info: TensorInfo) -> None:
        """A tensor that the adapter holds whole: a trained bias, or one of ``modules_to_save``."""
        plain = re.sub(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.)", "", name)
        plain = plain.removeprefix(_PREFIX)
        target = self._base_name(plain)
        if target is None:
            raise self._misfit(name, "fits no tensor of")
        there = self._known[target].shape
        if info.shape[1:] != there[1:] or len(info.shape) != len(there):
            raise self._misfit(name, f"is {list(info.shape)}, not {list(there)} as in")
        if info.shape != there:
            if len(there) != 2 or not target.endswith((*EMBEDDINGS, *HEADS)):
                raise self._misfit(name, f"is {list(info.shape)}, not {list(there)} as in")
            self.config = resized_config(self.config, there[0], info.shape[0])
        self.replaced[target] = replace(info, name=target)

    def _settle_head(self, tied: TiedHead) -> None:
        """Where the head is the base's embedding: whether both have the same table still.

        An embedding that is only held whole, as PEFT does after resizing it, is not trained apart.
        """
        head, embedding = tied.name, tied.embedding.name
        saved = self._settings.get("modules_to_save")
        names = saved if isinstance(saved, list) else []
        whole = any(embedding.removesuffix(".weight").endswith(str(name)) for name in names)
        both = embedding in self.changes or embedding in self.replaced
        if both and self._settings.get("ensure_weight_tying"):
            if not tied.stored:
                self.changes.pop(head, None)
                self.replaced.pop(head, None)
            return
        in_embedding = embedding in self.changes or (whole and embedding in self.replaced)
        in_head = head in self.changes or head in self.replaced
        if not in_head and not (in_embedding and (tied.exists or tied.elsewhere)):
            return
        if tied.elsewhere and in_embedding:
            raise CheckpointError(
                f"{self._where}: trains the embedding of {self._base.label} and not the head that is tied to"
                " it; merge it with PEFT first"
            )
        if head not in self.replaced and not tied.stored:
            if self.replaced.get(embedding, tied.embedding).shape != tied.embedding.shape:
                raise CheckpointError(
                    f"{self._where}: resizes the embedding, but does not hold the head that was tied to it;"
                    " save it again with PEFT's save_embedding_layers=True"
                )
            self.borrowed[head] = tied.embedding
        self.config = untied(self.config)

    def _squares_transposed(self, modules: Mapping[str, Mapping[str, TensorInfo]]) -> bool:
        """Whether square matrices are stored input first: as the others are, else as the config says."""
        for module, parts in modules.items():
            name = self._base_name(f"{module.removeprefix(_PREFIX)}.weight")
            if name is None or "lora_A" not in parts or "lora_B" not in parts:
                continue
            rows, columns = parts["lora_B"].shape[0], parts["lora_A"].shape[-1]
            if rows != columns and self._known[name].shape == (columns, rows):
                return True
        return bool(self._settings.get("fan_in_fan_out"))

    def _adapt(self, module: str, parts: Mapping[str, TensorInfo]) -> None:
        first = next(iter(parts.values())).name
        embedding = "lora_embedding_A" in parts
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        extra = set(parts) - {a, b, "lora_B.bias", "lora_magnitude_vector"}
        if a not in parts or b not in parts or extra:
            raise CheckpointError(f"{self._where}: '{printable(first)}' has no counterpart; save it again")
        inner, outer = parts[a], parts[b]
        plain = module.removeprefix(_PREFIX).removesuffix(".base_layer")
        name = self._base_name(f"{plain}.weight")
        if name is None:
            raise self._misfit(first, "fits no tensor of")
        target = self.replaced.get(name, self._known[name])
        scale = self._scale(plain, inner, outer)
        shape, rows, columns = target.shape, outer.shape[0], inner.shape[1:]
        plainly, turned = (rows, *columns), (*columns, rows)
        transposed = embedding or (shape == turned and (shape != plainly or self._square))
        wanted = turned if transposed else plainly
        if shape != wanted or len(outer.shape) < 2 or math.prod(outer.shape) != rows * inner.shape[0]:
            raise self._misfit(first, f"makes {list(wanted)}, but '{printable(name)}' is {list(shape)} in")
        if not target.dtype.is_float:
            raise self._misfit(first, f"is for '{printable(name)}', which is {target.dtype.code} in")
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None and (transposed or len(shape) != 2 or magnitude.count != rows):
            raise CheckpointError(
                f"{self._where}: DoRA of '{printable(name)}' is not supported (linear layers only);"
                " merge it with PEFT first"
            )
        left, right = (inner, outer) if transposed else (outer, inner)
        self.changes[name] = _Factors(left, right, transposed, scale, magnitude)
        if "lora_B.bias" in parts:
            self._adapt_bias(plain, parts["lora_B.bias"], scale)

    def _adapt_bias(self, module: str, vector: TensorInfo, scale: float) -> None:
        name = self._base_name(f"{module}.bias")
        if name is None or self._known[name].shape != vector.shape:
            raise self._misfit(vector.name, "fits no bias of")
        self.changes[name] = _Bias(vector, scale)

    def _scale(self, module: str, inner: TensorInfo, outer: TensorInfo) -> float:
        """PEFT's scaling: alpha / r, or alpha / sqrt(r) for rsLoRA; patterns may set both for a module."""
        settings = self._settings
        try:
            rank = int(self._by_pattern("rank_pattern", module, settings["r"]))
            alpha = float(self._by_pattern("alpha_pattern", module, settings["lora_alpha"]))
            if not math.isfinite(alpha):
                raise ValueError("alpha is no number")
        except (KeyError, TypeError, ValueError, OverflowError, re.error):
            raise CheckpointError(
                f"{self._where}/{_CONFIG}: r, lora_alpha or a pattern of theirs is missing or malformed; save"
                " it again with PEFT"
            ) from None
        if rank < 1 or inner.shape[:1] != (rank,) or outer.shape[1:2] != (rank,):
            raise CheckpointError(
                f"{self._where}: '{printable(inner.name)}' is {list(inner.shape)} and its counterpart"
                f" {list(outer.shape)}, but {_CONFIG} says rank {rank}; are they of the same training?"
            )
        return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank

    def _by_pattern(self, key: str, module: str, default: Any) -> Any:
        """The value of the first pattern that matches a module's name or its end, as PEFT looks it up."""
        patterns = self._settings.get(key) or {}
        if not isinstance(patterns, dict):
            raise TypeError(f"{key} is no map")
        for pattern, value in patterns.items():
            if not is_simple(pattern):
                raise CheckpointError(
                    f"{self._where}/{_CONFIG}: {key} '{printable(pattern, 60)}' could take for ever to match;"
                    " merge the adapter with PEFT first"
                )
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default


def split_adapter(name: str, is_model: Container[str] = ()) -> tuple[str, str | None]:
    """``BASE+ADAPTER`` in two, or the name and None.

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
