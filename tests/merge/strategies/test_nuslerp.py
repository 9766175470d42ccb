"""NuSLERP: by tensor, row and column."""

from __future__ import annotations

import pytest
import torch

from merge_models.merge.strategies import (
    NuSlerp,
)
from tests.merge.strategies.sphere import (
    family,
    gap,
    merged,
    slerp_formula,
)


class TestNuSlerp:
    @pytest.mark.parametrize("with_base", [False, True])
    @pytest.mark.parametrize(
        ("weight", "t"),
        [((3.0, 1.0), 0.25), ((-0.5, 0.5), 0.5), ((0.0, 0.0), 0.5), ((-1.0, 3.0), 1.5), ((3.0, -1.0), -0.5),
         ((-1.0, -3.0), 0.75)],
    )  # fmt: skip
    def test_rows_columns_and_whole(self, weight: tuple[float, float], t: float, with_base: bool) -> None:
        """At mergekit's t, beyond the ends of the arc too."""
        base, a, b = family(0.6, 2)
        centre = base if with_base else torch.zeros_like(base)
        x, y, held = a - centre, b - centre, base if with_base else None
        rows = torch.stack([slerp_formula(p, q, t) for p, q in zip(x, y, strict=True)])
        columns = torch.stack([slerp_formula(p, q, t) for p, q in zip(x.T, y.T, strict=True)], dim=1)
        by_row = NuSlerp(weight=weight, nuslerp_flatten=False)
        by_column = NuSlerp(weight=weight, nuslerp_flatten=False, nuslerp_row_wise=True)
        assert gap(merged([a, b], NuSlerp(weight=weight), held), centre + slerp_formula(x, y, t)) < 1e-14
        assert gap(merged([a, b], by_row, held), centre + rows) < 1e-14
        assert gap(merged([a, b], by_column, held), centre + columns) < 1e-14
        assert gap(merged([a[0], b[0]], by_column, None), slerp_formula(a[0], b[0], t)) < 1e-14

    def test_columns_are_summed_over_blocks(self) -> None:
        _, a, b = [x.float() for x in family(0.6, 2, size=(3000, 200))]
        strategy = NuSlerp(nuslerp_flatten=False, nuslerp_row_wise=True)
        a64, b64 = a.double(), b.double()
        w = 2 * torch.atan2((a64 / a64.norm(dim=0) - b64 / b64.norm(dim=0)).norm(dim=0),
                            (a64 / a64.norm(dim=0) + b64 / b64.norm(dim=0)).norm(dim=0))  # fmt: skip
        wanted = torch.sin(w / 2) * (a64 + b64) / torch.sin(w)
        assert gap(merged([a, b], strategy), wanted) < 1e-7
