"""What block kernels of task vectors are told: what is left of each, and by which rule they become one."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

ALL_KEYS = 1 << 31
"""Every key is below it."""

Key = tuple[int, int, int]
"""Three 32-bit words that decide a sequence of draws."""


@dataclass(frozen=True)
class Ranked:
    """Draws that keep an element the more often, the higher its key stands in its row.

    The probability goes linearly from ``least`` for the least key of ``source - base`` to ``most`` for the
    greatest. Equal keys share their mean rank; a row of one element has the mean of the two.

    Attributes:
        key: of the draws.
        columns: elements of a row; what is thinned is whole rows.
        least, most: probabilities in [0, 1].
        inverse: multiply what is kept by 1 over its probability.
    """

    key: Key
    columns: int
    least: float
    most: float
    inverse: bool


@dataclass(frozen=True)
class Thinned:
    """What is left of one task vector in a block.

    Attributes:
        low, high: only elements with keys in ``[low, high)`` are left,
        keep: besides, of those with key ``low - 1``, so many, the first;
        drop: but of those with key ``high - 1`` not the first so many.
        draw: only elements that a draw keeps are left: one with this key and probability, or one by rank;
            None leaves all.
        varied: the keys are those of the variance over all sources at an element, not of differences.
        factor: factor of them all, beside the weight.
        move: how far from the base an element may be; those further away are brought so near, first of all.
    """

    low: int = 0
    high: int = ALL_KEYS
    keep: int = 0
    drop: int = 0
    draw: tuple[Key, float] | Ranked | None = None
    varied: bool = False
    factor: float = 1.0
    move: float = math.inf


def limit_of(probability: float) -> int:
    """Returns the signed 32-bit word below which a draw keeps with that probability; 2^31 where it always
    does."""
    return math.ceil(probability * 2**32) - 2**31


class Rule(enum.IntEnum):
    """Which terms take part in an element's sum."""

    SUM = 0
    """All that are not thinned out."""
    ELECT = 1
    """Those of the sign that the sum of all has; zero and rounding noise count as plus. ``extra`` multiplies
    them after the vote."""
    LARGEST = 2
    """The one of largest magnitude, the positive one of two; all that equal it."""
    CONSENSUS = 3
    """All where at least ``enough`` of them hold their own: ``|t_i| >= extra_i * r``, but for rounding noise,
    where ``r`` is the size of the sum of the others."""
    ALONE = 4
    """All; ``extra`` multiplies those that are alone in their element."""


@dataclass(frozen=True)
class Mixing:
    """How terms ``t_i = factor_i * (what is left of task vector i)`` become one.

    Attributes:
        rule: which take part in an element's sum.
        factors: of each parent.
        shares: of each parent, by whose sum over those that take part ``normalize`` divides; 1 by default.
        extra: of each parent, as the rule has it; 1 by default.
        normalize: whether to divide by shares (by 1 where they cancel).
        enough: parents that make a consensus.
        scale: of the sum.
    """

    rule: Rule
    factors: Sequence[float]
    shares: Sequence[float] | None = None
    extra: Sequence[float] | None = None
    normalize: bool = False
    enough: int = 0
    scale: float = 1.0
