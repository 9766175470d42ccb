"""Sites of an evaluation: which leave a band, and how they are named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from merge_models.evals.schema import Evaluation, SiteActivations


def leaving(
    evaluation: Evaluation,
    value: Callable[[SiteActivations], float | None],
    *,
    below: float = -math.inf,
    above: float = math.inf,
) -> list[tuple[SiteActivations, float]]:
    """Returns sites whose value leaves the band."""
    sites = []
    for site in evaluation.activations.sites if evaluation.activations else ():
        number = value(site)
        if number is not None and (number < below or number > above):
            sites.append((site, number))
    return sites


def variance_ratio(site: SiteActivations) -> float | None:
    """Returns the site's variance over its parents' mean."""
    return site.variance_ratio.value if site.variance_ratio else None


def rank_ratio(site: SiteActivations) -> float | None:
    """Returns the site's effective rank over its parents' mean."""
    return site.effective_rank_ratio.value if site.effective_rank_ratio else None


def numbers(layers: Iterable[int | None]) -> tuple[int, ...]:
    """Returns the layers' numbers, each once, in order."""
    return tuple(sorted({layer for layer in layers if layer is not None}))


def places(sites: Sequence[SiteActivations]) -> str:
    """Returns where sites are: ``layers 2-5, 7 (mlp, residual)``."""
    layers = numbers(s.layer for s in sites)
    kinds = ", ".join(sorted({s.site for s in sites}))
    if not layers:
        return kinds
    return f"layer{'s' if len(layers) > 1 else ''} {_ranges(layers)} ({kinds})"


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
