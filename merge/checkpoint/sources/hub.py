"""From what the user typed to a path: a local one, or a Hub id ``org/name[@revision]``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.sentence_modules import module_weights
from merge_models.merge.checkpoint.sidecars import WANTED
from merge_models.merge.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_FILES = ["*.safetensors", *WANTED]
_PICKLED = ["pytorch_model*.bin"]
_OTHERS = ["*/*.safetensors", "onnx/*", "openvino/*", "original/*"]


def resolve(name: str | os.PathLike[str], *, allow_pickle: bool = False) -> Path:
    """Returns the local path of a checkpoint; Hub ids are fetched into, or found in, huggingface_hub's cache.

    Args:
        name: what the user typed.
        allow_pickle: whether a repository without safetensors may give ``pytorch_model*.bin``.

    Raises:
        CheckpointError: there is no such path, and it is no Hub id or cannot be fetched.
    """
    text = os.fspath(name)
    if not text:
        raise CheckpointError("a model's name is empty; give a folder, a .safetensors file or a Hub id")
    try:
        path = Path(text).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{printable(text)}: cannot be looked up: {reason}; check the path") from None
    if not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"{printable(text)}: no such file or folder; check the path")
    folder = _from_hub(text, _FILES)
    modules = module_weights(folder)
    if modules:
        folder = _from_hub(text, list(modules), [])
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _from_hub(text, [*_FILES, *_PICKLED])
    return folder


def hub_repositories(name: str) -> list[str]:
    """Returns the Hub repositories that a model's name (``a+b`` with an adapter) refers to; none for local
    paths."""
    parts = [part for part in name.split("+") if _HUB_ID.fullmatch(part) and not Path(part).exists()]
    return [part.partition("@")[0] for part in parts]


def hub_revision(path: Path) -> str | None:
    """Returns the commit that a folder of huggingface_hub's cache holds; None for any other folder."""
    commit = re.fullmatch(r"[0-9a-f]{40}", path.name)
    return path.name if commit and path.parent.name == "snapshots" else None


def cached(repository: str, revision: str) -> Path | None:
    """Returns the folder of huggingface_hub's cache with a repository at a commit; None where it is not
    there.

    Nothing is fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def _from_hub(name: str, wanted: list[str], unwanted: list[str] = _OTHERS) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=wanted, ignore_patterns=unwanted
        )
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{name}: no such folder, and not in the local Hub cache (offline, or the Hub is out of reach);"
            " check the path"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{name}: no such folder, and the Hub says: {reason[0] if reason else type(error).__name__}"
        ) from None
    return Path(folder)
