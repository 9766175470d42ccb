"""What an adapter of PEFT's format does to each tensor of a base, checked: names, shapes, scales."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from merge_models.merge.checkpoint.guard import is_simple
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.sidecars import resized_config
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from merge_models.merge.checkpoint.sources.tied import EMBEDDINGS, HEADS, untied
from merge_models.merge.checkpoint.sources.tied_head import TiedHead, tied_head
from merge_models.merge.errors import CheckpointError

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<end>weight|bias))?"
)
_REBASED = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")
_REFUSED = {
    "target_parameters": "adapts bare parameters",
    "layer_replication": "repeats layers",
    "trainable_token_indices": "trains single tokens",
    "use_qalora": "is a QA-LoRA",
    "alora_invocation_tokens": "is an activated LoRA, which no merge can hold",
}


@dataclass(frozen=True)
class Factors:
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
class Bias:
    """What ``lora_bias`` adds to a bias vector."""

    vector: TensorInfo
    scale: float


class AdapterReading:
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
        self.changes: dict[str, Factors | Bias] = {}
        self.replaced: dict[str, TensorInfo] = {}
        self.borrowed: dict[str, TensorInfo] = {}
        self.config = dict(base.config)
        self._known, tied = dict(base.tensors), tied_head(base)
        if tied is not None:
            self._known.setdefault(tied.name, replace(tied.embedding, name=tied.name))
        self._check_settings()
        modules: dict[str, dict[str, TensorInfo]] = {}
        for name, info in adapter.tensors.items():
            match = _FACTOR.fullmatch(name)
            if match is None:
                self._replace(name, info)
            else:
                end = ".bias" if match["end"] == "bias" else ""
                modules.setdefault(match["module"], {})[match["kind"] + end] = info
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
        self.changes[name] = Factors(left, right, transposed, scale, magnitude)
        if "lora_B.bias" in parts:
            self._adapt_bias(plain, parts["lora_B.bias"], scale)

    def _adapt_bias(self, module: str, vector: TensorInfo, scale: float) -> None:
        name = self._base_name(f"{module}.bias")
        if name is None or self._known[name].shape != vector.shape:
            raise self._misfit(vector.name, "fits no bias of")
        self.changes[name] = Bias(vector, scale)

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
                f"{self._where}/{CONFIG}: r, lora_alpha or a pattern of theirs is missing or malformed; save"
                " it again with PEFT"
            ) from None
        if rank < 1 or inner.shape[:1] != (rank,) or outer.shape[1:2] != (rank,):
            raise CheckpointError(
                f"{self._where}: '{printable(inner.name)}' is {list(inner.shape)} and its counterpart"
                f" {list(outer.shape)}, but {CONFIG} says rank {rank}; are they of the same training?"
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
                    f"{self._where}/{CONFIG}: {key} '{printable(pattern, 60)}' could take for ever to match;"
                    " merge the adapter with PEFT first"
                )
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return default
