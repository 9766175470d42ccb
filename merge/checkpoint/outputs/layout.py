"""Where every output byte goes, decided from names, dtypes and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from merge_models.merge.checkpoint.dtypes import DType
from merge_models.merge.checkpoint.header import encode_header

DEFAULT_SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        total = self.dtype.size
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True)
class Shard:
    """One output file: its name, its first bytes, its size, and the tensors in it."""

    name: str
    header: bytes
    nbytes: int
    tensors: tuple[OutputTensor, ...]


@dataclass(frozen=True)
class Layout:
    """All output files.

    Attributes:
        shards: the files.
        places: tensor name -> (index of its shard, offset of its first byte).
        total_size: bytes of all tensors.
        stem: what the files' names begin with.
    """

    shards: tuple[Shard, ...]
    places: Mapping[str, tuple[int, int]]
    total_size: int
    stem: str = "model"

    @property
    def index_name(self) -> str:
        """The name of the file that says which shard has which tensor."""
        return f"{self.stem}.safetensors.index.json"

    def index(self) -> dict[str, object] | None:
        """Returns the content of the index file; None for a single shard."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: self.shards[shard].name for name, (shard, _) in self.places.items()}
        return {"metadata": {"total_size": self.total_size}, "weight_map": weight_map}


def plan_layout(
    tensors: Iterable[OutputTensor],
    shard_size: int = DEFAULT_SHARD_SIZE,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> Layout:
    """Deals tensors out to shards in the given order; a shard is full when the next one would pass the size.

    Within a shard, wider dtypes come first, so that every tensor is aligned to its element size.
    """
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    shards: list[Shard] = []
    places: dict[str, tuple[int, int]] = {}
    for number, group in enumerate(groups):
        ordered = sorted(group, key=lambda tensor: -tensor.dtype.size)
        header = encode_header(
            [(t.name, t.dtype, t.shape) for t in ordered], {"format": "pt", **(metadata or {})}
        )
        position = len(header)
        for tensor in ordered:
            places[tensor.name] = (number, position)
            position += tensor.nbytes
        shards.append(Shard(_file_name(stem, number, len(groups)), header, position, tuple(ordered)))
    total = sum(tensor.nbytes for group in groups for tensor in group)
    return Layout(tuple(shards), places, total, stem)


def _file_name(stem: str, number: int, count: int) -> str:
    if count == 1:
        return f"{stem}.safetensors"
    return f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
