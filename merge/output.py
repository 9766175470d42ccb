"""Where a merge to disk puts its bytes: into the staged shards, with their digests, and into the journal."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from merge_models.merge.card import plain
from merge_models.merge.checkpoint.digest import Kinds, TensorDigest, digest_stored, kind_of
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.source import DiskSource
from merge_models.merge.checkpoint.staging import Staging
from merge_models.merge.plan import Plan, TensorPlan
from merge_models.merge.strategies.base import Figures

Place = tuple[str, str]
"""A stored tensor: its file and its name there."""


class StagedOutput:
    """The sink of a merge to disk.

    Args:
        staging: where shards are written.
        plan: what is written.
        kinds: of the digests.

    Attributes:
        digests: digest of every tensor that is finished.
        figures: what is told of them.
    """

    def __init__(self, staging: Staging, plan: Plan, kinds: Kinds) -> None:
        self.digests: dict[str, str] = {}
        self.figures: dict[str, Figures] = {}
        self._staging, self._plan, self._kinds = staging, plan, kinds
        self._sizes = {tensor.name: tensor.nbytes for tensor in plan.tensors}
        self._open: dict[str, TensorDigest] = {}
        self._inputs: dict[Place, str] = {}
        self._reading: dict[str, list[TensorDigest | None]] = {}
        self._feeds = _feeds(plan)
        self._lock = threading.Lock()

    def recover(self, records: Sequence[Mapping[str, Any]], threads: int) -> frozenset[str]:
        """Takes over what an earlier run has noted, where the bytes on the disk still are those noted.

        Returns:
            The names of the finished tensors.
        """
        tensors = {tensor.name: tensor for tensor in self._plan.tensors}
        noted = {record["tensor"]: record for record in records if record.get("tensor") in tensors}
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda name: self._recovered(tensors[name], noted[name]), noted)
            for name, digest in zip(noted, found, strict=True):
                if digest is not None:
                    self._take_over(tensors[name], noted[name], digest)
        return frozenset(self.digests)

    def _recovered(self, tensor: TensorPlan, record: Mapping[str, Any]) -> str | None:
        """A staged tensor's digest, of the kind that is wanted now; None where it is not what was noted."""
        noted = record["digest"]
        if self._staging.digest(tensor.name, tensor.nbytes, kind_of(noted)) != noted:
            return None
        if kind_of(noted) == self._kinds.output:
            return noted
        return self._staging.digest(tensor.name, tensor.nbytes, self._kinds.output)

    def _take_over(self, tensor: TensorPlan, record: Mapping[str, Any], digest: str) -> None:
        self.digests[tensor.name] = digest
        if record["figures"]:
            self.figures[tensor.name] = record["figures"]
        for place, read in zip(self._feeds[tensor.name], record["inputs"], strict=True):
            if place is not None and read is not None and kind_of(read) == self._kinds.inputs:
                self._inputs[place] = read

    def buffer(self, name: str, start: int, stop: int, scratch: np.ndarray) -> np.ndarray:
        del name
        return scratch[: stop - start]

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        digest = self._open.get(name)
        if digest is None:
            with self._lock:
                digest = self._open.setdefault(name, TensorDigest(self._sizes[name], self._kinds.output))
        digest.add(start, data)
        self._staging.write(name, start, data)

    def watch(self, tensor: TensorPlan, use: int, start: int, data: np.ndarray) -> None:
        """Takes a part of a source into that source's digest."""
        digest = (self._reading.get(tensor.name) or self._begin(tensor))[use]
        if digest is not None:
            digest.add(start, data)

    def _begin(self, tensor: TensorPlan) -> list[TensorDigest | None]:
        feeds = zip(self._feeds[tensor.name], tensor.sources(), strict=True)
        made = [TensorDigest(ref.info.nbytes, self._kinds.inputs) if place else None for place, ref in feeds]
        with self._lock:
            return self._reading.setdefault(tensor.name, made)

    def finish(self, name: str, figures: Figures) -> None:
        """Notes a tensor in the journal."""
        digest = self._open.pop(name).text()
        assert digest is not None, name
        read = [None if source is None else source.text() for source in self._reading.pop(name)]
        for place, text in zip(self._feeds[name], read, strict=True):
            if place is not None and text is not None:
                self._inputs[place] = text
        told = plain(figures)
        self._staging.note({"tensor": name, "digest": digest, "figures": told, "inputs": read})
        self.digests[name] = digest
        if told:
            self.figures[name] = told

    def complete(self, threads: int) -> dict[Place, str]:
        """What only the end knows: the digests of empty tensors, and of inputs that were read in parts.

        Tables whose rows were gathered and tensors under an adapter are read once more for this. Input
        tensors that the merge never reads have no digest: no byte of the output depends on them.

        Returns:
            The digests of all stored tensors that were read.
        """
        empty = str(TensorDigest(0, self._kinds.output).text())
        for tensor in self._plan.tensors:
            if tensor.nbytes == 0:
                self.digests[tensor.name] = empty
        read = {_place(info): info for tensor in self._plan.tensors for info in _stored(self._plan, tensor)}
        missing = [info for place, info in read.items() if place not in self._inputs]
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda info: digest_stored(info, self._kinds.inputs), missing)
            self._inputs |= dict(zip(map(_place, missing), found, strict=True))
        return {place: self._inputs[place] for place in read}


def _place(info: TensorInfo) -> Place:
    return str(info.file), info.name


def _stored(plan: Plan, tensor: TensorPlan) -> list[TensorInfo]:
    return [
        info
        for ref in tensor.sources()
        for info in cast("DiskSource", plan.models[ref.model]).stored(ref.info)
    ]


def _feeds(plan: Plan) -> dict[str, list[Place | None]]:
    """For every tensor, which of its sources give a stored tensor byte by byte and for the first time."""
    seen: set[Place] = set()
    feeds: dict[str, list[Place | None]] = {}
    for tensor in plan.tensors:
        places: list[Place | None] = []
        for ref in tensor.sources():
            stored = cast("DiskSource", plan.models[ref.model]).stored(ref.info)
            place = _place(ref.info) if stored == (ref.info,) and ref.info.nbytes else None
            places.append(None if place in seen else place)
            seen |= {place} if place is not None else set()
        feeds[tensor.name] = places
    return feeds
