"""A sample of what a survey covers, in short runs: it takes little reading, and tells what to look for.

Runs lie where the numbers of blocks say, whatever threads and memory there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.blocks import weighted_sum

SAMPLE = 1 << 17
"""About so many elements are sampled, one in :data:`_THIN` where that is more, and at most :data:`_MOST`."""

_SPARSE = 32
"""At most one element in so many."""

_THIN = 1024
_MOST = 1 << 21

RUN = 64
"""Elements of a run: two cache lines of 16 bits."""

_GOLDEN = 0.6180339887498949


def take_sample(elements: int) -> Generator[Pass, Moments, Block]:
    """Returns a sample of so many elements, as one block; empty where blocks are shorter than a run."""
    (listed,) = yield Pass(_listed, every=_every(elements))
    return _joined(listed.parts)


def sample_beside(
    elements: int, measure: Callable[[Block], Moments]
) -> Generator[Pass, Moments, tuple[Block, Moments]]:
    """Returns the same sample, taken in a round that reads everything since it measures more."""
    listed, *moments = yield Pass(_listed_beside, (_every(elements), measure))
    return _joined(listed.parts), tuple(moments)


def _listed(block: Block) -> Moments:
    return (Listed(block),)


def _listed_beside(block: Block, every: int, measure: Callable[[Block], Moments]) -> Moments:
    return Listed(thinned(block, every)), *measure(block)


def sampled_elements(elements: int) -> int:
    """Returns how many of so many are in a sample, about."""
    return elements // _every(elements)


def _every(elements: int) -> int:
    return max(_SPARSE, min(elements // SAMPLE, _THIN), elements // _MOST)


def run_starts(count: int, number: int, every: int) -> np.ndarray:
    """Returns where runs begin in the ``number``-th block, of ``count`` elements, for one element of
    ``every``.

    Each lies anywhere in a stretch of its own, so that runs wander over the columns of a matrix.
    """
    share = count / (RUN * every)
    first, last = int(number * share), int((number + 1) * share)
    if last == first or count < RUN:
        return np.zeros(0, np.int64)
    jitter = np.arange(first, last) * _GOLDEN % 1.0
    return ((np.arange(last - first) + jitter) * ((count - RUN) / (last - first))).astype(np.int64)


def thinned(block: Block, every: int) -> Block:
    """Returns the sample of a block that is in memory."""
    base = block.base_span
    starts = run_starts(block.spans[0].count, block.number, every)
    parents = [_cut_out(span, starts) for span in block.spans]
    sample = block.with_inputs(parents, None if base is None else _cut_out(base, starts))
    return replace(sample, columns=None, places=block.start + starts)


def _cut_out(span: Span, starts: np.ndarray) -> Span:
    size = span.dtype.size
    if not len(starts):
        return Span(span.data[:0], span.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(span.data, RUN * size)
    return Span(windows[starts * size].reshape(-1), span.dtype)


class Listed:
    """Parts that are listed, in block order, where other moments are added."""

    nbytes = 0
    """Next to nothing: no worker need wait with it."""

    def __init__(self, part: Any) -> None:
        self.parts = [part]

    def __iadd__(self, later: Listed) -> Listed:
        self.parts += later.parts
        return self


def _joined(blocks: list[Block]) -> Block:
    parts = [block for block in blocks if block.spans[0].count] or blocks[:1]
    spans = [_chained(sources) for sources in zip(*[part.spans for part in parts], strict=True)]
    bases = [part.base_span for part in parts if part.base_span is not None]
    places = [part.places for part in parts if part.places is not None]
    joined = parts[0].with_inputs(spans, _chained(bases) if bases else None)
    return replace(joined, number=0, places=np.concatenate(places))


def _chained(spans: tuple[Span, ...] | list[Span]) -> Span:
    if len({span.dtype.code for span in spans}) > 1:
        spans = [_in_float32(span) for span in spans]
    return Span(np.concatenate([span.data for span in spans]), spans[0].dtype)


def _in_float32(span: Span) -> Span:
    wide = Span(np.empty(4 * span.count, np.uint8), BY_CODE["F32"])
    weighted_sum([span], [1.0], wide)
    return wide
