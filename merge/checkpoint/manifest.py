"""What every manifest is made of: models, the files that were read, versions, and the seal."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Container, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.digest import digest_bytes, digest_file, digest_header
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.sidecars import MAX_SIDECAR, WANTED
from merge_models.merge.checkpoint.sources.hub import hub_repositories, hub_revision
from merge_models.merge.checkpoint.sources.lora import split_adapter
from merge_models.merge.checkpoint.sources.pickled import is_pickled
from merge_models.merge.checkpoint.sources.source import DiskSource

MANIFEST_FORMAT = 2
PICKLE = "torch.save"
"""``format`` of an input's weight file that is none of safetensors."""

SEAL = "manifest_digest"
_PACKAGES = ("torch", "numpy", "safetensors", "geoopt")


def version(package: str = "merge-models") -> str:
    """Returns the installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Returns what runs here: Python and the packages that compute."""
    return {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}}


@dataclass(frozen=True)
class Part:
    """One model or adapter that a recipe names.

    Attributes:
        text: as the recipe has it.
        path: where it is.
        repository, revision: on the Hub, where it is from there; the revision is a commit.
        is_result: whether an earlier recipe of the same file makes it.
    """

    text: str
    path: Path
    repository: str | None
    revision: str | None
    is_result: bool

    def location(self) -> str:
        """Returns what finds it from any working folder."""
        return self.text if self.repository or self.is_result else str(Path(os.path.abspath(self.path)))

    def public(self) -> str:
        """Returns a name that tells nothing of this machine."""
        if self.repository or self.is_result:
            return self.text
        path = Path(os.path.abspath(self.path))
        return os.fsencode(path.name).decode("utf-8", "replace") or "model"


def parts_of(model: DiskSource, results: Container[str] = ()) -> list[Part]:
    """Returns the model, and the adapter on it where it has one.

    Args:
        model: open.
        results: names of what earlier recipes of the same file make.
    """
    base, adapter = split_adapter(model.label, results)
    places = []
    for text, path in zip([base] if adapter is None else [base, adapter], model.paths, strict=True):
        repositories = hub_repositories(text) if text not in results else []
        revision = hub_revision(path) if repositories else None
        places.append(Part(text, path, repositories[0] if repositories else None, revision, text in results))
    return places


def described(parts: Mapping[str, Part]) -> dict[str, Any]:
    """Returns where models are found again, by their names in the recipe."""
    return {text: _model(part) for text, part in parts.items()}


def _model(part: Part) -> dict[str, Any]:
    if part.is_result:
        return {"earlier_recipe": part.text}
    if part.repository:
        return {"repository": part.repository, "revision": part.revision}
    return {"path": part.location()}


def described_input(
    role: str, model: DiskSource, read: Mapping[tuple[str, str], str], share: float | None = None
) -> dict[str, Any]:
    """Returns an input's files: small ones by content; of weights the header, and the tensors that were read.

    Args:
        role: what it is to the merge; ``share``: of a parent, how much of it is meant to be in the merge.
        model: open.
        read: digests of the tensors that were read, by file and name.
    """
    weights = [
        {
            "path": str(file.absolute()),
            "bytes": file.stat().st_size,
            **_hub_claim(file),
            **({"format": PICKLE} if is_pickled(file) else {}),
            "header": digest_header(file),
            "read": {name: digest for (place, name), digest in read.items() if place == str(file)},
        }
        for file in model.files
    ]
    small = [{"path": str(file.absolute()), "digest": digest_file(file)} for file in small_files(model)]
    return {
        "role": role,
        **({} if share is None else {"share": share}),
        "model": model.label,
        "tensors": len(model.tensors),
        "files": weights,
        "small_files": small,
    }


def _hub_claim(file: Path) -> dict[str, str]:
    """The SHA-256 that the Hub gives a large file, which its cache names the file by. Not checked here."""
    blob = file.resolve()
    is_digest = len(blob.name) == 64 and not set(blob.name) - set("0123456789abcdef")
    return {"hub_sha256": blob.name} if is_digest and blob.parent.name == "blobs" else {}


def small_files(model: DiskSource) -> list[Path]:
    """Returns the config, tokenizer and other small files of a model's folders that a merge may read."""
    folders = {path if path.is_dir() else path.parent for path in (*model.paths, model.tokenizer_folder)}
    files = {file for folder in folders for pattern in WANTED for file in folder.glob(pattern)}
    return sorted(file for file in files if file.name != MANIFEST and _is_small(file))


def _is_small(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= MAX_SIDECAR


def sealed(record: Mapping[str, Any]) -> str:
    """Returns the manifest's text, with a digest of itself at its end."""
    body = {key: value for key, value in record.items() if key != SEAL}
    seal = digest_bytes(json.dumps(body, indent=1).encode())
    return json.dumps({**body, SEAL: seal}, indent=1) + "\n"
