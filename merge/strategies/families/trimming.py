"""Task vectors trimmed to their largest elements: what TIES and others that cut by size share."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from functools import partial

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.kernel import Moments, Pass
from merge_models.merge.contract.span import Span
from merge_models.merge.kernels.selection.cuts import EVERYTHING, NOTHING, Cut, Totals
from merge_models.merge.kernels.selection.select import largest
from merge_models.merge.kernels.terms import Thinned


def deltas_of(parents: Sequence[int], block: Block) -> tuple[list[Span], Span | None]:
    """Returns some parents' task vectors as a :data:`merge_models.merge.kernels.selection.cuts.Series`."""
    return [block.spans[p] for p in parents], block.base_span


def trim(cut: Cut, block: Block, factor: float = 1.0) -> Thinned:
    """Returns a parent's task vector within a cut, in one block."""
    return Thinned(low=cut.least(block.number), keep=cut.ties(block.number), factor=factor)


def trimmed(block: Block, cuts: Sequence[Cut]) -> list[Thinned]:
    """Returns each parent's task vector within its cut."""
    return [trim(cut, block) for cut in cuts]


def magnitude(key: int) -> float:
    """Returns the number whose key it is."""
    return struct.unpack("<f", struct.pack("<i", key))[0]


def cuts_by_density(densities: Sequence[float], elements: int) -> Generator[Pass, Moments, tuple[Cut, ...]]:
    """Finds the cuts that keep a share of each parent's task vector, the largest elements.

    Of n elements exactly ``int(density * n)`` are kept, at least one unless the density is 0.
    """
    cuts = [EVERYTHING if density > 0 else NOTHING for density in densities]
    cut_parents = [parent for parent, density in enumerate(densities) if 0 < density < 1]
    if cut_parents:

        def sizes(totals: Totals) -> list[list[int]]:
            return [[max(1, int(densities[parent] * totals.elements))] for parent in cut_parents]

        series = partial(deltas_of, cut_parents)
        chosen = yield from largest(len(cut_parents), series, sizes, elements)
        for parent, (cut,) in zip(cut_parents, chosen, strict=True):
            cuts[parent] = cut
    return tuple(cuts)
