"""The k largest of a stream, exactly and without sorting.

Elements are compared by *keys*, int32 bit patterns of non-negative float32 numbers, which sort as the
numbers do; equal keys by position, the lowest first. Where a sample brackets the cut (brackets.py), one
round on everything finds it; else rounds of histograms do (rounds.py).
"""

from __future__ import annotations

from collections.abc import Generator

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.kernels.selection import samples
from merge_models.merge.kernels.selection.brackets import LISTED, by_sample
from merge_models.merge.kernels.selection.cuts import Cut, Series, Sizes
from merge_models.merge.kernels.selection.rounds import by_rounds


def largest(
    count: int, series: Series, sizes: Sizes, elements: int = 0, sample: Block | None = None
) -> Generator[Pass, Moments, list[list[Cut]]]:
    """Cuts that separate the largest keys of each series.

    Args:
        count: how many sequences of keys there are, such as one for each parent.
        series: a block's part of them.
        sizes: how many elements to choose, one number or more for each series.
        elements: of all blocks, if a sample's keys can be told: then it most often saves two rounds of three.
        sample: that was taken already; otherwise it is taken here, where it pays.

    Returns:
        A cut for each size, in the same nesting.
    """
    sample = sample or (yield from sample_of(elements))
    if sample is not None:
        cuts = yield from by_sample(sample, series, sizes, elements)
        if cuts is not None:
            return cuts
    return (yield from by_rounds(count, series, sizes))


def sample_of(elements: int) -> Generator[Pass, Moments, Block | None]:
    """Returns a sample for one call of :func:`largest` or more, where it saves anything."""
    return (yield from samples.take_sample(elements)) if elements > samples.SAMPLE else None


def selection_bytes(elements: int, count: int) -> int:
    """Returns memory that :func:`largest` takes beyond blocks, at most: a sample and its keys, and keys
    gathered."""
    if elements <= samples.SAMPLE:
        return 0
    sample = samples.sampled_elements(elements) * (4 * (count + 1) + 12 * count)
    return sample + 8 * min(LISTED, elements * count)
