"""The range of sizes of each task vector, without a few extremes at either end."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.kernels.competition import Range
from merge_models.merge.kernels.keys import keys_of
from merge_models.merge.kernels.selection.select import largest
from merge_models.merge.strategies.families.trimming import deltas_of, magnitude

_TAIL = 1e-4
"""Share of each task vector's elements at either end whose size is clamped."""

_LARGEST = 0x7F7FFFFF
"""The key of the largest finite number."""


def ranges_of_sizes(
    count: int, elements: int, sample: Block | None
) -> Generator[Pass, Moments, tuple[Range, ...]]:
    """Finds each parent's range of sizes without its extremes.

    Args:
        count: of parents.
        elements: that are surveyed.
        sample: of them, where one was taken.
    """
    parents, extreme = range(count), int(_TAIL * elements)
    if not extreme:
        (ends,) = yield Pass(_ends)
        return tuple((_size(least), _size(most)) for least, most in ends.keys)
    ranks = [[elements - extreme, extreme + 1]] * count
    series = partial(deltas_of, parents)
    cuts = yield from largest(count, series, lambda _: ranks, elements, sample)
    return tuple((_size(low.key), _size(high.key)) for low, high in cuts)


def _ends(block: Block) -> Moments:
    return (_Ends(block),)


class _Ends:
    """The least and the largest key of each task vector, over blocks that are added."""

    nbytes = 0
    """Next to nothing: no worker need wait with it."""

    def __init__(self, block: Block) -> None:
        found = [keys_of(span, block.base_span) for span in block.spans]
        self.keys = [(int(keys.min()), int(keys.max())) for keys in found]

    def __iadd__(self, later: _Ends) -> _Ends:
        pairs = zip(self.keys, later.keys, strict=True)
        self.keys = [(min(low, other[0]), max(high, other[1])) for (low, high), other in pairs]
        return self


def _size(key: int) -> float:
    """NaN and Inf, which stop a merge where they are met, are as large as any number till then."""
    return magnitude(min(key, _LARGEST))
