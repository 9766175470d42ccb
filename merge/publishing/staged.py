"""Where a merge to disk puts its bytes: into the staged shards, with their digests, and into the journal."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from merge_models.merge.checkpoint.digest import Kinds, TensorDigest, digest_stored, kind_of
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.outputs.staging import Staging
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.contract.kernel import Figures
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import Task
from merge_models.merge.publishing.card import plain

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
        self._sizes = {spec.name: spec.nbytes for task in plan.tasks for spec in task.outputs}
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
        makers = {spec.name: task for task in self._plan.tasks for spec in task.outputs}
        noted = {record["tensor"]: record for record in records if record.get("tensor") in makers}
        with ThreadPoolExecutor(threads) as pool:
            digests = pool.map(lambda name: self._recovered(name, noted[name]), noted)
            for name, digest in zip(noted, digests, strict=True):
                if digest is not None:
                    self._take_over(makers[name], noted[name], digest)
        return frozenset(self.digests)

    def _recovered(self, name: str, record: Mapping[str, Any]) -> str | None:
        """A staged tensor's digest, of the kind that is wanted now; None where it is not what was noted."""
        noted, nbytes = record["digest"], self._sizes[name]
        if self._staging.digest(name, nbytes, kind_of(noted)) != noted:
            return None
        if kind_of(noted) == self._kinds.output:
            return noted
        return self._staging.digest(name, nbytes, self._kinds.output)

    def _take_over(self, task: Task, record: Mapping[str, Any], digest: str) -> None:
        name = record["tensor"]
        self.digests[name] = digest
        if record["figures"]:
            self.figures[name] = record["figures"]
        feeds = self._feeds[task.name] if record["inputs"] else []
        for place, read in zip(feeds, record["inputs"], strict=True):
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

    def watch(self, task: Task, use: int, start: int, data: np.ndarray) -> None:
        """Takes a part of an input into that input's digest."""
        digest = (self._reading.get(task.name) or self._begin(task))[use]
        if digest is not None:
            digest.add(start, data)

    def _begin(self, task: Task) -> list[TensorDigest | None]:
        feeds = zip(self._feeds[task.name], task.inputs, strict=True)
        made = [TensorDigest(ref.info.nbytes, self._kinds.inputs) if place else None for place, ref in feeds]
        with self._lock:
            return self._reading.setdefault(task.name, made)

    def finish(self, task: Task, figures: dict[str, Figures]) -> None:
        """Notes the outputs of a task in the journal, and with the first of them what was read."""
        read = [None if digest is None else digest.text() for digest in self._reading.pop(task.name, [])]
        for place, text in zip(self._feeds[task.name], read, strict=True):
            if place is not None and text is not None:
                self._inputs[place] = text
        for spec in task.outputs:
            digest = self._open.pop(spec.name).text()
            assert digest is not None, spec.name
            told = plain(figures[spec.name])
            self._staging.note({"tensor": spec.name, "digest": digest, "figures": told, "inputs": read})
            self.digests[spec.name] = digest
            if told:
                self.figures[spec.name] = told
            read = []

    def complete(self, threads: int) -> dict[Place, str]:
        """Returns what only the end knows: the digests of empty tensors, and of inputs that were read in
        parts.

        Tables whose rows were gathered and tensors under an adapter are read once more for this. Input
        tensors that the merge never reads have no digest: no byte of the output depends on them.

        Returns:
            The digests of all stored tensors that were read.
        """
        empty = str(TensorDigest(0, self._kinds.output).text())
        self.digests |= {name: empty for name, nbytes in self._sizes.items() if nbytes == 0}
        read = {_place(info): info for task in self._plan.every_task() for info in _stored(self._plan, task)}
        missing = [info for place, info in read.items() if place not in self._inputs]
        with ThreadPoolExecutor(threads) as pool:
            digests = pool.map(lambda info: digest_stored(info, self._kinds.inputs), missing)
            self._inputs |= dict(zip(map(_place, missing), digests, strict=True))
        return {place: self._inputs[place] for place in read}


def _place(info: TensorInfo) -> Place:
    return str(info.file), info.name


def _stored(plan: Plan, task: Task) -> list[TensorInfo]:
    return [
        info for ref in task.inputs for info in cast("DiskSource", plan.models[ref.model]).stored(ref.info)
    ]


def _feeds(plan: Plan) -> dict[str, list[Place | None]]:
    """For every task, which of its inputs give a stored tensor byte by byte and for the first time."""
    seen: set[Place] = set()
    feeds: dict[str, list[Place | None]] = {}
    for task in plan.tasks:
        places: list[Place | None] = []
        for ref in task.inputs:
            stored = cast("DiskSource", plan.models[ref.model]).stored(ref.info)
            place = _place(ref.info) if stored == (ref.info,) and ref.info.nbytes else None
            places.append(None if place in seen else place)
            seen |= {place} if place is not None else set()
        feeds[task.name] = places
    return feeds
