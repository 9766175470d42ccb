"""Folders that transformers may load a model from: links to checked files, settings that run nothing.

Weights that transformers shall not load themselves (pickles, a base with its adapter) are written anew.

Settings can name code to run, other files to read, and sizes of models that are built on the way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from merge_models.merge.checkpoint.guard import MAX_JSON, read_json
from merge_models.merge.checkpoint.outputs.layout import OutputTensor, plan_layout
from merge_models.merge.checkpoint.sidecars import find_sidecars, is_tokenizer_file
from merge_models.merge.checkpoint.sources.pickled import is_pickled
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from merge_models.merge.errors import CheckpointError
from merge_models.merge.sizes import shown_size

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LEADS_ELSEWHERE = ("auto_map", "_file", "_path", "_dir", "name_or_path")
_CONFIG_LEADS_ELSEWHERE = ("auto_map", "_file", "name_or_path")
_BLOCK = 1 << 24
_CONFIG_KEYS = ("model_type", "tokenizer_class", "transformers_version")


def lay_out_tokenizer(folder: Path, clean: Path) -> bool:
    """Puts a model's tokenizer into a folder, and of its config what a tokenizer is chosen by.

    Returns:
        Whether there is one.

    Raises:
        CheckpointError: a file is too large or malformed.
    """
    link = _link_tokenizer(folder, clean)
    config = read_json(folder / "config.json")
    kept = {key: config[key] for key in _CONFIG_KEYS if isinstance(config.get(key), str)}
    _write(clean / "config.json", kept)
    return link


def lay_out_model(model: DiskSource, clean: Path) -> bool:
    """Puts a model with its tokenizer into a folder.

    Returns:
        Whether it has a tokenizer.

    Raises:
        CheckpointError: a file is too large or malformed, or there is no room to write weights anew.
    """
    if isinstance(model, Checkpoint) and not any(map(is_pickled, model.files)):
        _link_weights(model, clean)
    else:
        _write_weights(model, clean)
    config = model.config or read_json(model.folder / "config.json")
    _write(clean / "config.json", _kept(config, _CONFIG_LEADS_ELSEWHERE))
    return _link_tokenizer(model.tokenizer_folder, clean)


def _link_weights(checkpoint: Checkpoint, clean: Path) -> None:
    if len(checkpoint.files) == 1:
        (clean / "model.safetensors").symlink_to(checkpoint.files[0].resolve())
        return
    for file in checkpoint.files:
        (clean / file.name).symlink_to(file.resolve())
    weight_map = {name: info.file.name for name, info in checkpoint.tensors.items()}
    index = {"metadata": {"total_size": checkpoint.nbytes}, "weight_map": weight_map}
    _write(clean / "model.safetensors.index.json", index)


def _write_weights(model: DiskSource, clean: Path) -> None:
    """Writes the weights as reading gives them, block by block: sums of a base and an adapter unrounded."""
    layout = plan_layout(OutputTensor(i.name, i.dtype, i.shape) for i in model.tensors.values())
    needed, free = sum(shard.nbytes for shard in layout.shards), shutil.disk_usage(clean).free
    if needed > free:
        raise CheckpointError(
            f"{model.label}: needs {shown_size(needed, 'up')} of disk to be loaded,"
            f" {shown_size(free, 'down')} is free in {clean.parent}; set TMPDIR to another place"
        )
    buffer = np.empty(_BLOCK, dtype=np.uint8)
    try:
        for shard in layout.shards:
            with open(clean / shard.name, "wb") as file:
                file.write(shard.header)
                for info in (model.tensors[tensor.name] for tensor in shard.tensors):
                    for start in range(0, info.nbytes, _BLOCK):
                        stop = min(start + _BLOCK, info.nbytes)
                        file.write(model.read(info, start, stop, buffer).data)
    except OSError as error:
        raise CheckpointError(
            f"{clean.parent}: cannot be written: {error.strerror}; set TMPDIR to another place"
        ) from None
    index = layout.index()
    if index is not None:
        _write(clean / "model.safetensors.index.json", index)


def _link_tokenizer(folder: Path, clean: Path) -> bool:
    changed = False
    for name in find_sidecars(folder).copied:
        if not is_tokenizer_file(Path(name).name):
            continue
        changed = True
        (clean / name).parent.mkdir(exist_ok=True)
        if Path(name).name in _SETTINGS:
            _write(clean / name, _kept(read_json(folder / name), _LEADS_ELSEWHERE))
        elif (folder / name).stat().st_size > MAX_JSON:
            raise CheckpointError(f"{folder / name}: larger than {MAX_JSON >> 20} MiB; refused")
        else:
            (clean / name).symlink_to((folder / name).resolve())
    return changed


def _kept(settings: Mapping[str, object], leads_elsewhere: tuple[str, ...]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if not key.endswith(leads_elsewhere)}


def _write(target: Path, value: Mapping[str, object]) -> None:
    target.write_text(json.dumps(value), encoding="utf-8")
