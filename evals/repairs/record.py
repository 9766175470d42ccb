"""What a repaired merge says of itself: the model card and the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from merge_models.evals.schema import RepairReport
from merge_models.merge.checkpoint import Layout, Staging
from merge_models.merge.checkpoint.digest import FAST, STRONG, digest_bytes, digest_file, digest_stored
from merge_models.merge.checkpoint.manifest import (
    MANIFEST_FORMAT,
    Part,
    described,
    described_input,
    parts_of,
    sealed,
    version,
    versions,
)
from merge_models.merge.checkpoint.outputs.journal import binding_digest
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.sources.lora import open_model
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.text import code_span
from merge_models.merge.checkpoint.threads import default_threads

SOURCE = "REPAIR, Jordan et al. 2023"


@dataclass(frozen=True)
class Origins:
    """What a repaired merge was made from.

    Attributes:
        merged: the merge.
        parents: those whose scales it was given, with their shares.
        base: of the parents; it is not read.
        names: for each parent, and then the base, which of its tensors those of the merge came from, where
            that is known.
        allow_pickle: whether they may be files of ``torch.save``.
    """

    merged: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    names: tuple[Mapping[str, str], ...] | None
    allow_pickle: bool


def repair_binding(report: RepairReport, origins: Origins) -> dict[str, Any]:
    """Returns what tells this repair from others."""
    made = {"from": origins.merged, "parents": ", ".join(origins.parents), "weights": list(origins.weights)}
    return {"repair": {**made, "report": digest_bytes(report.model_dump_json().encode())}}


def write_record(staging: Staging, layout: Layout, report: RepairReport, origins: Origins) -> None:
    """Writes README.md and the manifest of a repaired merge whose other files are staged.

    Raises:
        CheckpointError: a model cannot be read again, or the disk is full.
    """
    named = [("merge", origins.merged), *(("parent", parent) for parent in origins.parents)]
    named += [("base", origins.base)] if origins.base else []
    shares = [None, *origins.weights, *([None] if origins.base else [])]
    with ExitStack() as stack:
        opened = [
            (role, stack.enter_context(closing(open_model(name, allow_pickle=origins.allow_pickle))))
            for role, name in named
        ]
        parts = [(role, part) for role, model in opened for part in parts_of(model)]
        staging.write_text("README.md", _card(report, parts))
        record = {
            "format": MANIFEST_FORMAT,
            "tool": {"name": "merge-models", "version": version()},
            "versions": versions(),
            "repair": _repair(report, origins),
            "models": described({part.text: part for _, part in parts}),
            "inputs": [
                described_input(role, model, _digests(model) if role != "base" else {}, share)
                for (role, model), share in zip(opened, shares, strict=True)
            ],
        }
    tensors = [tensor for shard in layout.shards for tensor in shard.tensors]
    record["output"] = {
        "tensors": len(tensors),
        "bytes": layout.total_size,
        "files": [shard.name for shard in layout.shards],
        **({"origins": [{}, *map(dict, origins.names)]} if origins.names is not None else {}),
    }
    record["digest"] = binding_digest(repair_binding(report, origins))
    record["digests"] = {
        "headers": {shard.name: digest_bytes(shard.header) for shard in layout.shards},
        "files": {name: digest_file(staging.folder / name) for name in staging.small_files()},
        "tensors": {tensor.name: staging.digest(tensor.name, tensor.nbytes, STRONG) for tensor in tensors},
    }
    staging.write_text(MANIFEST, sealed(record))


def _repair(report: RepairReport, origins: Origins) -> dict[str, Any]:
    told = json.loads(report.model_dump_json(exclude={"layers"}))
    changed = [n for layer in report.layers if layer.folded_into for n in layer.folded_into]
    return {"method": SOURCE, "weights": list(origins.weights), **told, "changed": changed}


def _digests(model: DiskSource) -> dict[tuple[str, str], str]:
    """Of every stored tensor, by file and name: all of them were read."""
    stored = {(str(i.file), i.name): i for info in model.tensors.values() for i in model.stored(info)}
    with ThreadPoolExecutor(default_threads()) as pool:
        return dict(
            zip(stored, pool.map(lambda info: digest_stored(info, FAST), stored.values()), strict=True)
        )


def _card(report: RepairReport, parts: Sequence[tuple[str, Part]]) -> str:
    repositories = dict.fromkeys(part.repository for _, part in parts if part.repository)
    lines = ["---", *(["base_model:", *(f"- {name}" for name in repositories)] if repositories else [])]
    lines += [
        "library_name: transformers",
        "tags:",
        "- merge",
        "- merge-models",
        "---",
        "# Repaired merge",
        "",
    ]
    names = {
        role: [f"`{code_span(p.public())}`" for r, p in parts if r == role] for role in ("merge", "parent")
    }
    lines += [
        f"Made with merge-models {version()} by `repair` ({SOURCE}) from {'+'.join(names['merge'])}: its"
        f" activations have the scales of those of its parents {', '.join(names['parent'])}.",
        "",
        "`repair.json` tells what changed in each layer.",
    ]
    if report.loss_before is not None and report.loss_after is not None:
        lines += [
            "",
            f"Loss on held-out text, nats a token: {report.loss_before:.4f} before,"
            f" {report.loss_after:.4f} after.",
        ]
    return "\n".join(lines) + "\n"
