"""What is wrong with a merge, and what that makes of it."""

from __future__ import annotations

from typing import Literal

from merge_models.evals.diagnostics.record import Basis, Outcome, Record, Status

Cause = Literal[
    "not finite",
    "variance collapse",
    "rank collapse",
    "norm shrinkage",
    "norm blow-up",
    "parent lost",
    "divergence from all",
    "degenerate text",
    "muddled middle",
    "single-parent dominance",
]


class Finding(Record):
    """One thing that is wrong, or worth knowing.

    Attributes:
        cause: which.
        status: how bad this finding makes the merge; ``healthy`` for a remark.
        where: layers, skill or parent concerned, in words.
        layers: 0-based layers concerned.
        evidence: the measured numbers in a sentence.
        value, threshold: the number that decided and what it was compared with.
        source: where the threshold comes from (the calibration, a paper).
        remedy: what to try, as commands or settings.
    """

    cause: Cause
    status: Status
    where: str
    layers: tuple[int, ...] = ()
    evidence: str
    value: float | None = None
    threshold: float | None = None
    source: str
    remedy: str


class Verdict(Record):
    """What the evaluation concludes.

    Attributes:
        status: the worst of the findings that the calibration lets decide; ``not judged`` where none is bad
            and nothing could be compared (no common layer, no text or task that a parent knows).
        score: predicted damage from 0 (as the parents) up, by which merges rank; calibrated against measured
            loss. ``score_kind``: ``lost share`` of what the parents know, where predictions tell; else
            ``drift``, the largest mean distance from the parents' residual streams over their norms.
        basis: ``weights`` (screening only), ``activations`` or ``activations and tasks``.
        by_skill: status of each task or domain; ``by_layer``: of each layer.
    """

    status: Outcome
    score: float | None = None
    score_kind: Literal["lost share", "drift"] | None = None
    basis: Basis
    summary: str
    findings: tuple[Finding, ...] = ()
    by_skill: dict[str, Status] = {}
    by_layer: dict[int, Status] = {}
