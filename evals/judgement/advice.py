"""Which strategies fit parents of a given geometry: rules, each with where it comes from.

Sources: *geometry* is ``python -m benchmarks.geometry`` (table in the README), on Gaussian families whose
geometry is known; papers are named. No number measured on weights alone predicts a merge's loss well: what
does differs from method to method (arXiv:2601.22285), and conflicts of parameters hardly do
(arXiv:2603.09463). So rules say which strategies coincide, which norms are lost and what differs between
them, and "measure it" where that is all that is known. Never more than ``MOST`` are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from merge_models.evals.schema import WeightDiagnosis

Advice = tuple[str, str]
MOST = 5

FLAT = 1e-3
"""Lost norm below which means on the sphere about zero equal the plain one to bfloat16's rounding, 1.7e-3
(geometry: with deltas of 2 % of the base, which lose 2e-4, they differ by 2.5e-7 beyond the norm)."""

CURVED = 0.05
"""Lost norm above which it shows (geometry: 0.07 to 0.18, three siblings, deltas of 0.5 to 1 of the base)."""

STRANGERS = 0.3
"""Mean cosine of whole models below which no mean of their weights is known to work (Entezari et al. 2022:
independent trainings are separated by barriers unless their units are permuted to match)."""

FADED = 0.8
"""Share of the deltas' norm that averaging keeps, below which putting it back is worth a try."""

UNEVEN = 1.5
"""Largest over smallest delta norm (geometry: norms 0.5 : 1 : 2 part karcher from norm_mean by 0.15)."""

OVERLAPPING = 0.1
"""Median overlap of the deltas' leading subspaces above chance, from which they share directions."""

ALIKE = 0.3
"""Mean cosine between deltas from which they are runs of one task rather than different skills."""

CLOSER = 0.2
"""By how much a parent's mean cosine to the others falls below the median one to be an outlier."""


def advise(geometry: WeightDiagnosis, different_tokens: bool = False) -> tuple[Advice, ...]:
    """Returns strategies that fit, best first, each with the reason; a pair is its name and a sentence or
    two.

    Args:
        geometry: how far apart the parents are, as ``diagnose_parents`` measures it.
        different_tokens: whether their vocabularies differ, so that embeddings were left out.
    """
    count = len(geometry.cosine or ())
    if count < 2 or geometry.mean_norm_ratio is None:
        return ()
    lost = max(0.0, 1 - geometry.mean_norm_ratio)
    rules = _with_base(geometry, lost, count) if geometry.delta_norms else _without_base(geometry, lost)
    advice = list(rules)[:MOST]
    if different_tokens and advice:
        name, why = advice[0]
        advice[0] = (name, f"{why} Vocabularies differ: merge with 'tokenizer: {{source: union}}'.")
    return tuple(advice)


def _off_diagonal(geometry: WeightDiagnosis) -> list[float]:
    rows = geometry.cosine or ()
    pairs = [row[j] for i, row in enumerate(rows) for j in range(i)]
    return [cosine for cosine in pairs if cosine is not None]


def _without_base(geometry: WeightDiagnosis, lost: float) -> Iterator[Advice]:
    cosines = _off_diagonal(geometry)
    near = math.fsum(cosines) / len(cosines) if cosines else 1.0
    if near < STRANGERS:
        yield _strangers(near)
        return
    if lost < FLAT:
        yield _linear(lost)
        yield (
            "task_arithmetic",
            "name the base (--base) if they were tuned from one model: what they learnt is in the deltas,"
            " which this view of whole weights hardly sees.",
        )
        return
    outlier = _outlier(geometry)
    if outlier is not None:
        yield _outlying(outlier)
    yield (
        "norm_mean",
        f"averaging loses {lost:.1%} of the weights' norm; this is the average brought back to the parents'"
        " mean norm (benchmarks.geometry: the loss is most of what separates karcher from linear).",
    )
    if outlier is None:
        yield (
            "karcher",
            "the mean on the sphere; it differs from norm_mean only where parents are unequal, and then needs"
            " that control beside it (benchmarks.geometry). Measure both.",
        )
    yield ("linear", f"the control: {lost:.1%} of the norm lost may or may not matter. Measure it.")


def _with_base(geometry: WeightDiagnosis, lost: float, count: int) -> Iterator[Advice]:
    norms = [norm for norm in geometry.delta_norms or () if norm]
    cosines = _off_diagonal(geometry)
    if len(norms) < 2 or not cosines:
        yield ("linear", "at most one parent differs from the base: there is nothing to reconcile.")
        return
    near = math.fsum(cosines) / len(cosines)
    far = max(norms)
    if far > 1 and near < 0.5 and lost > CURVED:
        # deltas larger than the base itself: it is no base of theirs
        yield _strangers(near)
        return
    uneven, kept = max(norms) / min(norms), geometry.mean_delta_norm_ratio or 1.0
    if near >= ALIKE:
        yield (
            "linear",
            f"the deltas point the same way (mean cosine {near:.2f}), as runs of one task do: nothing beats"
            " the mean of neighbours (Wortsman et al. 2022).",
        )
        yield (
            "model_stock",
            "for runs of one task: it moves the mean towards the base by the angle between them (Jang et al."
            " 2024). It shrinks what different skills learnt. Measure it.",
        )
    else:
        yield _task_arithmetic(geometry, near, count, kept)
    outlier = _outlier(geometry)
    if outlier is not None:
        yield _outlying(outlier)
    if uneven > UNEVEN:
        yield (
            "unit_mean",
            f"with --set origin=base: delta norms differ by {uneven:.1f} times, and a plain mean follows the"
            " largest; this one is of directions, at the mean norm (benchmarks.geometry: 0.15 apart for"
            " 0.5 : 1 : 2).",
        )
    elif kept < FADED:
        yield (
            "norm_mean",
            f"with --set origin=base: averaging keeps {kept:.0%} of the deltas' norm (unrelated ones keep"
            f" 1/sqrt({count}) = {count**-0.5:.0%}); this brings it back (benchmarks.geometry: karcher"
            " about the base agrees with it to 3e-4).",
        )
    yield from _conflict(geometry, count)
    if lost < FLAT:
        yield _linear(lost)


def _task_arithmetic(geometry: WeightDiagnosis, near: float, count: int, kept: float) -> Advice:
    overlaps = [t.subspace_overlap for t in geometry.tensors if t.subspace_overlap is not None]
    shared = median(overlaps) if overlaps else 0.0
    if shared > OVERLAPPING:
        return (
            "task_arithmetic",
            f"deltas share leading directions (overlap {shared:.2f} above chance), whose sum counts them"
            f" {count} times: begin with lambda {1 / count:.2f} of the sum and measure upwards.",
        )
    return (
        "task_arithmetic",
        f"deltas are nearly unrelated (mean cosine {near:.2f}, overlap {shared:+.2f} above chance), so they"
        f" add without counting twice: measure lambda from {1 / count:.2f} (the mean, which keeps {kept:.0%}"
        " of the norm) to 1 of the sum; 0.3 to 0.4 is usual for many tasks (Ilharco et al. 2023).",
    )


def _conflict(geometry: WeightDiagnosis, count: int) -> Iterator[Advice]:
    """Signs of unrelated deltas disagree by chance: with N of them, all but one coordinate in 2^(N-1)."""
    if geometry.sign_conflict is None:
        return
    chance = 1 - 2.0 ** (1 - count)
    level = "as by chance" if geometry.sign_conflict > 0.9 * chance else "less than by chance"
    yield (
        "ties",
        f"signs disagree at {geometry.sign_conflict:.0%} of the coordinates ({level}: unrelated deltas give"
        f" {chance:.0%}); it keeps large entries and the majority's sign (Yadav et al. 2023). Conflict"
        " predicts little by itself. Measure it.",
    )


def _linear(lost: float) -> Advice:
    return (
        "linear",
        f"averaging loses {lost:.1e} of the weights' norm: karcher, slerp and norm_mean about zero give the"
        " same to rounding, at twice the reading (benchmarks.geometry).",
    )


def _strangers(near: float) -> Advice:
    return (
        "linear",
        f"nothing here fits: their cosine is {near:.2f}, as of models trained apart, and no mean of such"
        " weights is known to work unless units are matched first (Ainsworth et al. 2023). Expect a collapse,"
        " and measure it.",
    )


def _outlying(number: int) -> Advice:
    return (
        "karcher",
        f"parent {number + 1} lies apart from the others: there the mean of directions is another point than"
        " the mean (benchmarks.geometry: 0.07 apart for near twins and a stranger). Ask whether it belongs in"
        " at all.",
    )


def _outlier(geometry: WeightDiagnosis) -> int | None:
    """The parent whose mean cosine to the others is far below the median one, among three or more."""
    rows: Sequence[Sequence[float | None]] = geometry.cosine or ()
    if len(rows) < 3:
        return None
    means = []
    for i, row in enumerate(rows):
        others = [cosine for j, cosine in enumerate(row) if j != i and cosine is not None]
        means.append(math.fsum(others) / len(others) if others else 1.0)
    lowest = min(range(len(means)), key=lambda i: means[i])
    return lowest if median(means) - means[lowest] > CLOSER else None
