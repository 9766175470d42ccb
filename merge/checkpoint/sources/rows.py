"""A checkpoint whose embeddings and heads are read in another order of rows, some of them from other models.

No table is ever held: an output row is a place to read from, and runs of rows that lie together are read
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE, DType
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.sources.wrapped import WrappedSource

ZERO, MEAN = -1, -2
"""In :attr:`RowMap.models`: a row of zeros; the mean of the rows that :attr:`RowMap.owners` lists."""


@dataclass(frozen=True)
class RowMap:
    """Where each row of a table comes from.

    Attributes:
        models: for each output row the index of a model, ``ZERO`` or ``MEAN``.
        rows: for each output row the row in that model.
        owners: ``[models, rows]``: each model's own row for every output row, or -1; for the means.
        infos: the table in every model, None where it has none.
    """

    models: np.ndarray
    rows: np.ndarray
    owners: np.ndarray
    infos: tuple[TensorInfo | None, ...]

    def used(self) -> set[int]:
        """Returns indices of the models that are read."""
        single = set(np.unique(self.models[self.models >= 0]).tolist())
        owning = (self.owners[:, self.models == MEAN] >= 0).any(axis=1)
        return single | set(np.flatnonzero(owning).tolist())

    def starts(self) -> np.ndarray:
        """Returns first rows of the runs: within one, every row is read right after the row before it."""
        models, rows, owners = self.models, self.rows, self.owners
        joined = models[1:] == models[:-1]
        follows = rows[1:] == rows[:-1] + 1
        owner_follows = (owners[:, 1:] == owners[:, :-1] + 1) | ((owners[:, 1:] < 0) & (owners[:, :-1] < 0))
        follows = np.where(models[1:] == MEAN, owner_follows.all(axis=0), follows | (models[1:] == ZERO))
        return np.flatnonzero(np.concatenate([[True], ~(joined & follows)]))


@dataclass(frozen=True)
class _Table:
    """A row map, cut into runs: their first rows, and their first elements."""

    rows: RowMap
    starts: np.ndarray
    begins: np.ndarray
    columns: int


class GatheredRows(WrappedSource):
    """A model with some tables replaced by row maps.

    Args:
        models: every model that the maps refer to.
        number: which of them this is.
        config: its config.json, for the new vocabulary.
        maps: tensor name -> where its rows come from.
    """

    def __init__(
        self,
        models: Sequence[DiskSource],
        number: int,
        config: Mapping[str, Any],
        maps: Mapping[str, RowMap],
    ) -> None:
        model, tensors = models[number], dict(models[number].tensors)
        self._models = models
        self._tables: dict[str, _Table] = {}
        for name, rows in maps.items():
            own = rows.infos[number]
            assert own is not None
            tensors[name] = _describe(name, own, rows)
            columns = int(np.prod(own.shape[1:], dtype=np.int64))
            starts = rows.starts()
            self._tables[name] = _Table(rows, starts, starts * columns, columns)
        super().__init__(model, tensors=tensors, config=dict(config))

    def stored(self, info: TensorInfo) -> tuple[TensorInfo, ...]:
        table = self._tables.get(info.name)
        if table is None:
            return self._model.stored(info)
        used = ((self._models[index], table.rows.infos[index]) for index in sorted(table.rows.used()))
        return tuple(part for model, own in used if own is not None for part in model.stored(own))

    def check_unchanged(self) -> None:
        for model in self._models:
            model.check_unchanged()

    def read(self, info: TensorInfo, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Returns bytes ``start`` to ``stop`` of a tensor, run by run where its rows are gathered."""
        table = self._tables.get(info.name)
        if table is None:
            return self._model.read(info, start, stop, buffer)
        size, begins = info.dtype.size, table.begins
        first, last = start // size, stop // size
        out = buffer[: stop - start]
        run = int(np.searchsorted(begins, first, side="right")) - 1
        at = first
        while at < last:
            end = min(int(begins[run + 1]) if run + 1 < len(begins) else last, last)
            place = out[(at - first) * size : (end - first) * size]
            self._read_run(table, run, at - int(begins[run]), info.dtype, place)
            at, run = end, run + 1
        return out

    def _read_run(self, table: _Table, run: int, skip: int, dtype: DType, place: np.ndarray) -> None:
        """Fills ``place`` with a run's elements from the ``skip``-th on."""
        row = int(table.starts[run])
        kind = int(table.rows.models[row])
        if kind == ZERO:
            place[:] = 0
        elif kind == MEAN:
            owners = np.flatnonzero(table.rows.owners[:, row] >= 0).tolist()
            total = np.zeros(place.nbytes // dtype.size, dtype=np.float64)
            part = np.empty_like(place)
            for model in owners:
                first = int(table.rows.owners[model, row]) * table.columns + skip
                self._read_elements(table, model, first, dtype, part)
                total += part.view(_numpy_dtype(dtype))
            place.view(_numpy_dtype(dtype))[:] = total / len(owners)
        else:
            first = int(table.rows.rows[row]) * table.columns + skip
            self._read_elements(table, kind, first, dtype, place)

    def _read_elements(self, table: _Table, model: int, first: int, dtype: DType, place: np.ndarray) -> None:
        info = table.rows.infos[model]
        assert info is not None
        count, size = place.nbytes // dtype.size, info.dtype.size
        if info.dtype == dtype:
            got = self._models[model].read(info, first * size, (first + count) * size, place)
            if not np.may_share_memory(got, place):
                place[:] = got
            return
        import torch

        buffer = np.empty(count * size, dtype=np.uint8)
        got = self._models[model].read(info, first * size, (first + count) * size, buffer)
        values = torch.from_numpy(got).view(getattr(torch, info.dtype.torch_name))
        torch.from_numpy(place).view(getattr(torch, dtype.torch_name)).copy_(values)


def _numpy_dtype(dtype: DType) -> Any:
    return {"F64": np.float64, "F32": np.float32}[dtype.code]


def _describe(name: str, own: TensorInfo, rows: RowMap) -> TensorInfo:
    """The table as it reads: in its own dtype where rows are only moved, wide where they are averaged."""
    used = [info for index, info in enumerate(rows.infos) if info is not None and index in rows.used()]
    dtypes = {info.dtype for info in used} | {own.dtype}
    dtype, stored_as = own.dtype, own.stored_as
    if len(dtypes) > 1 or (rows.models == MEAN).any():
        dtype = BY_CODE["F64" if any(d.code == "F64" for d in dtypes) else "F32"]
        stored_as = own.own_dtype if own.own_dtype != dtype else None
    return TensorInfo(name, dtype, (len(rows.models), *own.shape[1:]), own.file, 0, stored_as)
