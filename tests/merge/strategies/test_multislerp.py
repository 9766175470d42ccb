"""MultiSLERP: one step of the log map."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from merge_models.merge.strategies import (
    Karcher,
    MultiSlerp,
    UnitMean,
)
from tests.merge.strategies.sphere import (
    WEIGHTS,
    exp,
    family,
    gap,
    log,
    merged,
)


class TestMultiSlerp:
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("with_base", [True, False])
    def test_one_step_of_the_log_map(self, normalize: bool, with_base: bool) -> None:
        base, *points = family(1.5)
        weights = (0.6, 0.5, 0.1)
        centre = base if with_base else torch.zeros_like(base)
        x = [p - centre for p in points]
        units = [p / p.norm() for p in x]
        shares = [w / sum(weights) for w in weights]
        m = cast(Tensor, sum(w * u for w, u in zip(shares, units, strict=True)))
        m = m / m.norm()
        step = cast(Tensor, sum(w * log(m, u) for w, u in zip(shares, units, strict=True)))
        scale = shares if normalize else weights
        length = sum(w * float(p.norm()) for w, p in zip(scale, x, strict=True))
        ours = merged(
            points, MultiSlerp(weight=weights, normalize_weights=normalize), base if with_base else None
        )
        assert gap(ours, centre + exp(m, step) * length) < 1e-13

    def test_mergekits_step_is_zero_and_this_one_is_not(self) -> None:
        points = family(1.5)[1:]
        units = [p / p.norm() for p in points]
        m = cast(Tensor, sum(w * u for w, u in zip(WEIGHTS, units, strict=True)))
        m = m / m.norm()
        projected = cast(
            Tensor, sum(w * (u - (u * m).sum() * m) for w, u in zip(WEIGHTS, units, strict=True))
        )
        assert float(projected.norm()) < 1e-15
        start, once, end = (
            merged(points, s) for s in (UnitMean(WEIGHTS), MultiSlerp(WEIGHTS), Karcher(WEIGHTS))
        )
        assert gap(once, end) < 0.1 * gap(start, end)
