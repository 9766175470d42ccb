"""Finds the weight files of a folder, a file or a Hub id, and opens them by their headers."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from merge_models.merge.checkpoint.guard import is_file, read_json
from merge_models.merge.checkpoint.header import (
    ALLOW_PICKLE,
    NO_GGUF,
    PICKLE_SUFFIXES,
    TensorInfo,
    printable,
    read_header,
)
from merge_models.merge.checkpoint.sources.hub import resolve
from merge_models.merge.checkpoint.sources.pickled import PickledCheckpoint, is_pickled, read_pickled
from merge_models.merge.checkpoint.sources.stored import Checkpoint
from merge_models.merge.errors import CheckpointError

_INDEX_SUFFIX, _PICKLED_INDEX = ".safetensors.index.json", "pytorch_model.bin.index.json"
_ADAPTER, _ADAPTER_CONFIG = "adapter_model", "adapter_config.json"
_ALONE = "is an adapter without its base model"
_FACTOR = re.compile(r"\.(lora_(embedding_)?[AB]|lora_down|lora_up|lora_magnitude_vector)(\.|$)")
_ADAPTER_PREFIX = "base_model.model."  # of all that PEFT saves, modules that were trained whole among them
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "*_states.pt")


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
    """Returns the same of anything that has tensors, an adapter's file among it."""
    try:
        files = weight_files(path, label, allow_pickle=allow_pickle)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    if allow_pickle and files[0].suffix in PICKLE_SUFFIXES:
        if is_pickled(files[0]):
            read = [read_pickled(file) for file in files]
            tensors = _joined(path, [pickled.tensors for pickled in read])
            stamps = {file: pickled.stamp for file, pickled in zip(files, read, strict=True)}
            views = {key: view for pickled in read for key, view in pickled.views.items()}
            config = read_json(path / "config.json") if path.is_dir() else {}
            opened = PickledCheckpoint(label, path, tuple(files), tensors, config, {}, stamps, views=views)
            return opened
    headers = [read_header(file) for file in files]
    tensors = _joined(path, [header.tensors for header in headers])
    config = read_json(path / "config.json") if path.is_dir() else {}
    stamps = {file: header.stamp for file, header in zip(files, headers, strict=True)}
    return Checkpoint(label, path, tuple(files), tensors, config, headers[0].metadata, stamps)


def why_no_model(names: Collection[str]) -> str:
    """Returns why tensors of these names are not a model's: low-rank factors, of which no mean means
    anything, and no model, or one that they are not yet added to. Empty for a model's, whose architecture may
    have factors."""
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
    """Returns the weight files of a checkpoint: as transformers looks, a single file before an index.

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
    files = sorted(file for file in path.glob("*.safetensors") if file not in adapters)
    if len(files) == 1:
        return files
    if files:
        names = ", ".join(printable(file.name) for file in files[:4])
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
    indexes = sorted(path.glob(f"*{_INDEX_SUFFIX}"))
    if len(indexes) > 1:
        names = ", ".join(printable(file.name) for file in indexes[:3])
        raise CheckpointError(f"{path}: several indexes ({names}); leave one, or name one weight file")
    return indexes[0] if indexes else None


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    strings = isinstance(weight_map, dict) and all(isinstance(v, str) for v in weight_map.values())
    if not strings or not weight_map:
        raise CheckpointError(
            f"{index}: has no weight_map from tensor names to file names; download it again"
        )
    return weight_map


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
