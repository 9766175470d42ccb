"""How the raw numbers of a checkpoint become points of a manifold, and come back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Lifted:
    """Raw numbers as points, and what the points leave out.

    Attributes:
        point: ``[..., *event]``.
        rest: what a point does not say, such as a norm; it is averaged flat. ``[...]`` and dimensions of its
            own.
        defined: ``[...]``, whether there is a point at all; under False ``point`` means nothing.
    """

    point: Tensor
    rest: Tensor
    defined: Tensor
