"""Folders that transformers may load a model from: links to checked files, settings that run nothing.

Settings can name code to run, other files to read, and sizes of models that are built on the way.
"""

from __future__ import annotations

import json
from pathlib import Path

from merge_models.merge.checkpoint.guard import MAX_JSON, read_json
from merge_models.merge.checkpoint.sidecars import find_sidecars, is_tokenizer_file
from merge_models.merge.checkpoint.source import Checkpoint
from merge_models.merge.errors import CheckpointError

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LEADS_ELSEWHERE = ("auto_map", "_file", "_path", "_dir", "name_or_path")
_CONFIG_LEADS_ELSEWHERE = ("auto_map", "_file", "name_or_path")
_CONFIG_KEYS = ("model_type", "tokenizer_class", "transformers_version")


def lay_out_tokenizer(folder: Path, clean: Path) -> bool:
    """Puts a model's tokenizer into a folder, and of its config what a tokenizer is chosen by.

    Returns:
        Whether there is one.

    Raises:
        CheckpointError: a file is too large or malformed.
    """
    found = _link_tokenizer(folder, clean)
    config = read_json(folder / "config.json")
    kept = {key: config[key] for key in _CONFIG_KEYS if isinstance(config.get(key), str)}
    _write(clean / "config.json", kept)
    return found


def lay_out_model(checkpoint: Checkpoint, clean: Path) -> bool:
    """Puts a model with its tokenizer into a folder.

    Returns:
        Whether it has a tokenizer.

    Raises:
        CheckpointError: a file is too large or malformed.
    """
    if len(checkpoint.files) == 1:
        (clean / "model.safetensors").symlink_to(checkpoint.files[0].resolve())
    else:
        for file in checkpoint.files:
            (clean / file.name).symlink_to(file.resolve())
        weight_map = {name: info.file.name for name, info in checkpoint.tensors.items()}
        index = {"metadata": {"total_size": checkpoint.nbytes}, "weight_map": weight_map}
        _write(clean / "model.safetensors.index.json", index)
    _write_settings(checkpoint.folder / "config.json", clean / "config.json", _CONFIG_LEADS_ELSEWHERE)
    return _link_tokenizer(checkpoint.tokenizer_folder, clean)


def _link_tokenizer(folder: Path, clean: Path) -> bool:
    found = False
    for name in find_sidecars(folder).copied:
        if not is_tokenizer_file(Path(name).name):
            continue
        found = True
        (clean / name).parent.mkdir(exist_ok=True)
        if Path(name).name in _SETTINGS:
            _write_settings(folder / name, clean / name, _LEADS_ELSEWHERE)
        elif (folder / name).stat().st_size > MAX_JSON:
            raise CheckpointError(f"{folder / name}: larger than {MAX_JSON >> 20} MiB; refused")
        else:
            (clean / name).symlink_to((folder / name).resolve())
    return found


def _write_settings(source: Path, target: Path, leads_elsewhere: tuple[str, ...]) -> None:
    _write(target, {k: v for k, v in read_json(source).items() if not k.endswith(leads_elsewhere)})


def _write(target: Path, value: dict[str, object]) -> None:
    target.write_text(json.dumps(value), encoding="utf-8")
