"""Divergences of runs, and the quartiles of the importances that they give to changes."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.importance import divergences, importances
from merge_models.merge.kernels.keys import keys_of
from merge_models.merge.kernels.selection.cuts import Totals
from merge_models.merge.kernels.selection.samples import RUN, Listed, sample_beside
from merge_models.merge.kernels.selection.select import largest

_QUARTERS = (0.25, 0.5, 0.75)


Quartiles = tuple[np.ndarray, list[int]]
"""Every run's divergence, and the keys of the three quartiles of importance."""


def quartiles_of_few() -> Generator[Pass, Moments, Quartiles]:
    """Finds the quartiles of so few elements that all of them may be listed."""
    found, keys = (np.concatenate(listed.parts) for listed in (yield Pass(_measured)))
    places = [int(quarter * (len(keys) - 1)) for quarter in _QUARTERS]
    return found, np.partition(keys, places)[places].tolist()


def _measured(block: Block) -> Moments:
    """Lists the divergences of a block's runs, and the keys of its importances."""
    (parent,), base, length = block.spans, block.origin, run_length(block.case)
    own = divergences(parent, base, length)
    return Listed(own), Listed(keys_of(importances(parent, base, own, length), None))


def _divergences(block: Block) -> Moments:
    return (Listed(divergences(block.spans[0], block.origin, run_length(block.case))),)


def quartiles(elements: int) -> Generator[Pass, Moments, Quartiles]:
    """Finds the quartiles of more, by a sample that the first round takes."""

    def sizes(totals: Totals) -> list[list[int]]:
        return [[totals.elements - int(quarter * (totals.elements - 1)) for quarter in _QUARTERS]]

    sample, (listed,) = yield from sample_beside(elements, _divergences)
    values = np.concatenate(listed.parts)
    (cuts,) = yield from largest(1, partial(_series, values), sizes, elements, sample)
    return values, [cut.key for cut in cuts]


def _series(found: np.ndarray, block: Block) -> tuple[list[Span], None]:
    return [_importances(block, found)], None


def _importances(block: Block, found: np.ndarray) -> Span:
    """Returns importances of a block, or of a sample, given the divergences of all the tensor's runs."""
    length = run_length(block.case)
    if block.places is None:
        own = found[block.start // length :]
    else:
        elements = block.places[:, None] + np.arange(RUN)
        own, length = found[elements // length].reshape(-1), 1
    return importances(block.spans[0], block.origin, own, length)


def run_length(case: Case) -> int:
    """Returns the elements of a run: along the last dimension."""
    return case.shape[-1] if case.shape else 1
