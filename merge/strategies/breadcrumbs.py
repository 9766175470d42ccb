"""Model breadcrumbs: drop the largest and the smallest elements of task vectors, sum what is between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from merge_models.merge.strategies.families.bands import AbstractBreadcrumbs


@dataclass(frozen=True)
class Breadcrumbs(AbstractBreadcrumbs):
    """Drops the largest and the smallest elements of task vectors and adds their weighted sum to the base.

    Kernel: band masks. Carrier: flat space about the base. Source: Davari & Belilovsky 2023, "Model
    breadcrumbs" (2312.06795). Thresholds are each tensor's, and exact; of equal elements those that come
    first count as larger.
    """

    name: ClassVar[str] = "breadcrumbs"
    source: ClassVar[str] = "Davari & Belilovsky 2023, arXiv:2312.06795"
    elects: ClassVar[bool] = False


@dataclass(frozen=True)
class BreadcrumbsTies(AbstractBreadcrumbs):
    """Drops the largest and the smallest elements of task vectors and sums those of each elected sign.

    Kernel: band masks, sign election. Carrier: flat space about the base. Source: Davari & Belilovsky 2023
    (2312.06795) with the election of Yadav et al. 2023 (2306.01708).
    """

    name: ClassVar[str] = "breadcrumbs_ties"
    source: ClassVar[str] = "Davari & Belilovsky 2023, arXiv:2312.06795"
    elects: ClassVar[bool] = True
