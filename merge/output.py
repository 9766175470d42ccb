"""Where a merge to disk puts its bytes: into the staged shards, with their digests, and into the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from merge_models.merge.card import plain
from merge_models.merge.checkpoint.digest import TensorDigest, digest_stored
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
        input_kind: kind of the inputs' digests.

    Attributes:
        digests: digest of every tensor that is finished.
        figures: what is told of them.
    """

    def __init__(self, staging: Staging, plan: Plan, input_kind: str) -> None:
        self.digests: dict[str, str] = {}
        self.figures: dict[str, Figures] = {}
        self._staging, self._plan, self._kind = staging, plan, input_kind
        self._sizes = {tensor.name: tensor.nbytes for tensor in plan.tensors}
        self._open: dict[str, TensorDigest] = {}
        self._inputs: dict[Place, str] = {}
        self._reading: dict[Place, TensorDigest] = {}
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
            found = pool.map(lambda name: self._staging.digest(name, tensors[name].nbytes), noted)
            for name, digest in zip(noted, found, strict=True):
                if digest == noted[name]["digest"]:
                    self._take_over(tensors[name], noted[name])
        return frozenset(self.digests)

    def _take_over(self, tensor: TensorPlan, record: Mapping[str, Any]) -> None:
        self.digests[tensor.name] = record["digest"]
        if record["figures"]:
            self.figures[tensor.name] = record["figures"]
        for place, digest in zip(self._feeds[tensor.name], record["inputs"], strict=True):
            if place is not None and digest is not None:
                self._inputs[place] = digest

    def buffer(self, name: str, start: int, stop: int, scratch: np.ndarray) -> np.ndarray:
        del name
        return scratch[: stop - start]

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        self._staging.write(name, start, data)
        self._digest(self._open, name, lambda: TensorDigest(self._sizes[name])).add(start, data)

    def watch(self, tensor: TensorPlan, use: int, start: int, data: np.ndarray) -> None:
        """Takes a part of a source into that source's digest."""
        place = self._feeds[tensor.name][use]
        if place is not None:
            size = tensor.sources()[use].info.nbytes
            self._digest(self._reading, place, lambda: TensorDigest(size, self._kind)).add(start, data)

    def _digest(
        self, digests: dict[Any, TensorDigest], key: Any, make: Callable[[], TensorDigest]
    ) -> TensorDigest:
        digest = digests.get(key)
        if digest is None:
            with self._lock:
                digest = digests.setdefault(key, make())
        return digest

    def finish(self, name: str, figures: Figures) -> None:
        """Notes a tensor in the journal."""
        digest = self._open.pop(name).text()
        assert digest is not None, name
        read = [None if place is None else self._reading.pop(place).text() for place in self._feeds[name]]
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
        empty = str(TensorDigest(0).text())
        for tensor in self._plan.tensors:
            if tensor.nbytes == 0:
                self.digests[tensor.name] = empty
        read = {_place(info): info for tensor in self._plan.tensors for info in _stored(self._plan, tensor)}
        missing = [info for place, info in read.items() if place not in self._inputs]
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda info: digest_stored(info, self._kind), missing)
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
