"""What sentence-transformers puts behind a model: modules in folders of their own, some with weights."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from merge_models.merge.checkpoint.guard import check_inside, is_file, parse_json, read_bounded
from merge_models.merge.errors import CheckpointError, printable

MODULES = "modules.json"
WEIGHTS, PICKLED_WEIGHTS = "model.safetensors", "pytorch_model.bin"
_MAX_LIST = 1 << 20


def module_weights(folder: Path) -> tuple[str, ...]:
    """Returns the weight files that modules of a model's folder should have by ``modules.json``, by their
    path in it.

    Only folders directly in it count; whether each file is there is another question.

    Raises:
        CheckpointError: the list is not readable, or is a link out of the folder.
    """
    if not is_file(folder / MODULES):
        return ()
    check_inside(folder, MODULES)
    try:
        modules: Any = parse_json(read_bounded(folder / MODULES, _MAX_LIST))
    except ValueError:
        raise CheckpointError(
            f"{printable(str(folder / MODULES), 400)}: is not valid JSON; mend it or download it again"
        ) from None
    entries = modules if isinstance(modules, list) else []
    paths = [entry.get("path") for entry in entries if isinstance(entry, dict)]
    names = [path.rstrip("/") for path in paths if isinstance(path, str)]
    simple = [n for n in names if n not in ("", ".", "..") and PurePosixPath(n).name == n and os.sep not in n]
    return tuple(dict.fromkeys(f"{name}/{WEIGHTS}" for name in simple if name.isprintable()))
