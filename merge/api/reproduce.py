"""Running a merge again from its manifest alone, and comparing what comes out with what is there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.api.several import run_recipes
from merge_models.merge.checkpoint.digest import digest_stored
from merge_models.merge.checkpoint.header import TensorInfo, printable, read_header
from merge_models.merge.checkpoint.manifest import version, versions
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.checkpoint.sources.hub import resolve
from merge_models.merge.errors import CheckpointError, MergeError
from merge_models.merge.publishing.card import REVIEW_MARK
from merge_models.merge.publishing.verify import files_under, read_manifest
from merge_models.merge.recipes.recipe import parse_recipe

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Reproduction:
    """What running a merge again gave.

    Attributes:
        differences: one line for each file or tensor that came out otherwise, or that the merge does not
            make; empty where all bytes agree.
        other_versions: what runs here in another version than the merge was made with.
        tensors: how many were compared.
    """

    differences: tuple[str, ...]
    other_versions: tuple[str, ...]
    tensors: int


def reproduce(
    out: str | os.PathLike[str],
    *,
    scratch: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reproduction:
    """Runs the merge that made an output folder again, in a temporary place, and compares all bytes.

    Inputs are those that the manifest names: paths of this machine, and Hub repositories at the commits that
    were read. The manifest itself is not compared: it holds paths and the time of change of the inputs.

    Args:
        out: the output folder.
        scratch: where to merge, with as much space as the output takes; the system's temporary folder by
            default.
        threads: workers; one per core by default.
        progress: called with the bytes just written.

    Raises:
        MergeError: the manifest or the inputs are not there, or the merge fails.

    >>> from merge_models.merge import merge
    >>> merge(["runs/a", "runs/b"], out="runs/merged").path.name
    'merged'
    >>> reproduce("runs/merged").differences
    ()
    """
    folder = local_path(out)
    scratch = None if scratch is None else local_path(scratch)
    record = read_manifest(folder)
    if "repair" in record:
        raise CheckpointError(
            f"{folder}: is a repaired merge, which is measured anew each time; repair it again"
        )
    recipes = [
        parse_recipe(value, MANIFEST) for value in (*record.get("earlier_recipes", ()), record["recipe"])
    ]
    pickles = record["options"].get("allow_pickle", False) is True
    try:
        with tempfile.TemporaryDirectory(prefix="merge-models-", dir=scratch) as place:
            again = Path(place) / "again"
            run_recipes(
                recipes,
                again,
                places=_places(record["models"], allow_pickle=pickles),
                shard_size=record["output"]["shard_size"],
                on_nonfinite=record["options"]["on_nonfinite"],
                allow_pickle=pickles,
                threads=threads,
                progress=progress,
            )
            differences = _compare(folder, again)
    except OSError as error:
        raise CheckpointError(
            f"{scratch or tempfile.gettempdir()}: {error.strerror}; pass --scratch"
        ) from None
    return Reproduction(tuple(differences), _other_versions(record), record["output"]["tensors"])


def _places(models: Mapping[str, Any], *, allow_pickle: bool) -> dict[str, Path]:
    """Where the models are: on this machine, or in the Hub's cache at the commit that was read."""
    places = {}
    for text, described in models.items():
        if "path" in described:
            places[text] = places[described["path"]] = Path(described["path"])
        elif described.get("repository") and described.get("revision"):
            commit = f"{described['repository']}@{described['revision']}"
            places[text] = resolve(commit, allow_pickle=allow_pickle)
    return places


def _compare(folder: Path, again: Path) -> list[str]:
    names = {file.relative_to(again).as_posix() for file in again.rglob("*") if file.is_file()} - {MANIFEST}
    differences = []
    for name in sorted(names):
        if not (folder / name).is_file():
            differences.append(f"{name}: is missing")
        elif name == "README.md" and _card(folder / name) == _card(again / name):
            continue
        elif not _same_bytes(folder / name, again / name):
            differences += _named(name, folder / name, again / name)
    others = [name for name in files_under(folder) if name not in names and name != MANIFEST]
    differences += [f"{name}: is no part of this merge" for name in others]
    return [printable(line, 2000) for line in differences]


def _card(file: Path) -> bytes:
    """A model card without what was measured of the merge: a measurement tells its time."""
    return file.read_bytes().partition(REVIEW_MARK.encode())[0].rstrip()


def _same_bytes(left: Path, right: Path) -> bool:
    if left.stat().st_size != right.stat().st_size:
        return False
    with open(left, "rb") as one, open(right, "rb") as two:
        while chunk := one.read(_CHUNK):
            if chunk != two.read(_CHUNK):
                return False
    return True


def _named(name: str, left: Path, right: Path) -> list[str]:
    """What differs in a file: its tensors, where it is a shard."""
    if not name.endswith(".safetensors"):
        return [f"{name}: came out otherwise"]
    try:
        old, new = read_header(left).tensors, read_header(right).tensors
    except MergeError as error:
        return [str(error)]
    changed = [key for key in new if key not in old or not _same_tensor(old[key], new[key])]
    if not changed:
        return [f"{name}: its header came out otherwise"]
    return [f"{name}: tensor '{key}' came out otherwise" for key in changed]


def _same_tensor(left: TensorInfo, right: TensorInfo) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return digest_stored(left) == digest_stored(right)


def _other_versions(record: Mapping[str, Any]) -> tuple[str, ...]:
    made = {"merge-models": record["tool"]["version"], **record["versions"]}
    here = {"merge-models": version(), **versions()}
    return tuple(
        f"{name} {made[name]} (here {here.get(name)})" for name in made if made[name] != here.get(name)
    )
