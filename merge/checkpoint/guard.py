"""What is opened in a stranger's folder: regular files of bounded size, links that stay inside."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merge_models.merge.errors import CheckpointError, MergeError, printable

MAX_JSON = 64 << 20
MAX_VALUES = 1_500_000
"""Values in one JSON text. Each may take a hundred bytes once parsed, however few it has in the file."""

MAX_DEPTH = 32
_STARTS = (b",", b":", b"[", b"{")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_UNBOUNDED = re.compile(r"[*+{]")


def check_inside(folder: Path, name: str) -> Path:
    """Returns the path of a small file in a model's folder, which no link may lead elsewhere.

    A link may lead to a file in the folder, to the blobs of a model in the Hub's cache (as ``--local-dir`` of
    older ``huggingface-cli download`` has them), or to a file that has the same path in another folder (as in
    a folder of links to a model). Otherwise reading, and copying to the output, could give away a file that
    has nothing to do with any model.

    Raises:
        CheckpointError: it leads elsewhere.
    """
    file = folder / name
    try:
        real, home = os.path.realpath(file), os.path.realpath(folder)
    except (OSError, ValueError):
        return file
    inside = real.startswith(os.path.join(home, "")) or real.endswith(os.sep + os.path.normpath(name))
    blobs = Path(real).parent
    if not inside and not (blobs.name == "blobs" and blobs.parent.name.startswith("models--")):
        raise CheckpointError(
            f"{printable(str(file), 400)}: is a link to {printable(real)}, which is no part of the model;"
            " put the file itself there, or remove it"
        )
    return file


def read_bounded(
    file: Path, limit: int, advice: str = "refused", error: type[MergeError] = CheckpointError
) -> bytes:
    """Returns all bytes of a small file.

    Args:
        file: which.
        limit: bytes that it may have, in whole MiB.
        advice: what is said of a larger one.
        error: what is raised.

    Raises:
        MergeError: it cannot be read, or is too large.
    """
    name = printable(str(file), 400)
    try:
        with open(file, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as failure:
        raise error(f"{name}: cannot be read: {failure.strerror}") from None
    if len(data) > limit:
        raise error(f"{name}: larger than {limit >> 20} MiB; {advice}")
    return data


def parse_json(text: bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Returns a JSON text, whose values are counted before any of them is made.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds more than ``MAX_VALUES`` values.
    """
    if sum(map(text.count, _STARTS)) > MAX_VALUES:
        raise ValueError("too many values")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(file: Path) -> dict[str, Any]:
    """Returns a JSON object from a file; ``{}`` where the file does not exist.

    Raises:
        CheckpointError: it is too large, unreadable, a link out of the folder, or not a plain JSON object.
    """
    if not os.path.lexists(file):
        return {}
    if not is_file(file):
        raise CheckpointError(f"{file}: is not a file, or a link to none; download it again")
    check_inside(file.parent, file.name)
    try:
        value = parse_json(read_bounded(file, MAX_JSON))
    except ValueError:
        raise CheckpointError(f"{file}: is not valid JSON; mend it or download it again") from None
    if not isinstance(value, dict) or _is_deep(value):
        raise CheckpointError(f"{file}: is not a plain JSON object; mend it or download it again")
    return value


def is_file(path: Path) -> bool:
    """Returns whether it is a regular file, or a link to one."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_deep(value: Any) -> bool:
    """Whether containers are nested so deeply that copying them would exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [i for item in level for i in (item.values() if isinstance(item, dict) else item)]
        level = [item for item in inner if isinstance(item, (dict, list))]
    return bool(level)


def is_simple(pattern: str) -> bool:
    """Returns whether a regular expression from a file is one that cannot take for ever.

    Names of modules, with alternatives and character classes, are; repeated groups, back references and more
    than two repetitions are not.
    """
    plain = re.sub(r"\\.", "", pattern)
    return (
        len(pattern) <= 400
        and not _REPEATED_GROUP.search(plain)
        and not re.search(r"\(\?(?!:)|\\[1-9]", pattern)
        and len(_UNBOUNDED.findall(re.sub(r"\[[^\]]*\]", "", plain))) <= 2
    )
