"""Weights of a merge against its parents': no forward pass."""

from __future__ import annotations

from typing import Literal

from merge_models.evals.schema.record import Record


class TensorWeights(Record):
    """One merged tensor against its parents. Means over parents take the parents' weights.

    Attributes:
        name: tensor name; ``layer`` its layer or None outside the stack; ``kind`` its name without the
        layer's number.
        shape: its shape. Spectral numbers treat it as a matrix of ``shape[0]`` rows; they are None for 1-D
        tensors.
        norm: Frobenius norm of the merged tensor; ``norm_ratio``: over the parents' mean norm.
        delta_norm: Frobenius norm of merge - base; ``delta_norm_ratio``: over the mean norm of the parents'
        deltas.
        spectral_norm: largest singular value; ``spectral_norm_ratio``: over the parents' mean;
            ``spectral_norm_error``: bound of its relative error, 0 where it is exact.
        stable_rank: squared Frobenius over squared spectral norm; ``stable_rank_ratio``: over the parents'
        mean.
        effective_rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007);
            ``effective_rank_ratio``: over the parents' mean.
        delta_effective_rank: the same of merge - base; ``delta_effective_rank_ratio``: over the parents'
        deltas' mean.
        rank_method: ``exact`` (all singular values) or ``estimated`` (with ``rank_error``, the relative
        error bound
            or standard error of the effective rank).
        hyperspherical_energy: mean over sampled pairs of rows of the inverse distance of their unit vectors;
            ``hyperspherical_energy_ratio``: over the parents' mean.
        sign_conflict: share of the coordinates with at least two nonzero deltas whose nonzero deltas differ
        in sign.
        cosine: matrix of cosines between the parents' deltas (between the parents where there is no base).
        subspace_overlap: mean over parent pairs of ||U_a' U_b||_F^2 / k less its chance level k / n, of the
        deltas' leading
            left singular spaces.
        largest_angle: of the parents from their weighted mean, on the sphere about the origin, in radians;
        ``unique``:
            whether all lie in the ball in which the Karcher mean is unique (angle < pi / 2).
        mean_norm_ratio: norm of the parents' weighted mean over their mean norm: what plain averaging keeps;
            ``mean_delta_norm_ratio``: the same of their deltas.
        parent_share: coefficients of the least-squares fit of merge (- base) by the parents (- base).
        effective_parents: exp of the entropy of the normalised magnitudes of ``parent_share``, from 1 to N.
        unexplained: share of the squared norm of merge (- base) outside the span of the parents (- base).
        finite: whether every value of the merged tensor is finite.
    """

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    norm: float | None = None
    norm_ratio: float | None = None
    delta_norm: float | None = None
    delta_norm_ratio: float | None = None
    spectral_norm: float | None = None
    spectral_norm_ratio: float | None = None
    spectral_norm_error: float | None = None
    stable_rank: float | None = None
    stable_rank_ratio: float | None = None
    effective_rank: float | None = None
    effective_rank_ratio: float | None = None
    delta_effective_rank: float | None = None
    delta_effective_rank_ratio: float | None = None
    rank_method: Literal["exact", "estimated"] | None = None
    rank_error: float | None = None
    hyperspherical_energy: float | None = None
    hyperspherical_energy_ratio: float | None = None
    sign_conflict: float | None = None
    cosine: tuple[tuple[float | None, ...], ...] | None = None
    subspace_overlap: float | None = None
    largest_angle: float | None = None
    unique: bool | None = None
    mean_norm_ratio: float | None = None
    mean_delta_norm_ratio: float | None = None
    parent_share: tuple[float, ...] | None = None
    effective_parents: float | None = None
    unexplained: float | None = None
    finite: bool = True


class DepthWeights(Record):
    """Medians of ``TensorWeights`` over one layer's matrices (layer None: outside the stack)."""

    layer: int | None
    norm_ratio: float | None = None
    delta_norm_ratio: float | None = None
    spectral_norm_ratio: float | None = None
    stable_rank_ratio: float | None = None
    effective_rank_ratio: float | None = None
    delta_effective_rank_ratio: float | None = None
    hyperspherical_energy_ratio: float | None = None
    sign_conflict: float | None = None
    subspace_overlap: float | None = None


class WeightDiagnosis(Record):
    """The weights of a merge against its parents: a screening, not a verdict.

    Attributes:
        tensors: one record a tensor, in the model's order; ``depth``: one a layer.
        cosine: of the parents' whole deltas (or of the parents), over all tensors together.
        delta_norms: norm of each parent's whole delta, over the base's norm (None without a base).
        norm_ratio, delta_norm_ratio: of the whole model. Where its layers came from different parents, the
            mean norms are of those that each came from, and what is told of all parents together is None.
        sign_conflict: over all coordinates together.
        parent_share, effective_parents, unexplained: of the whole model; ``mean_norm_ratio``,
            ``mean_delta_norm_ratio`` likewise.
        problems: what could not be compared (tensors that a model lacks, has in another shape or with NaN),
            one line each.
        seconds: wall time it took.
    """

    tensors: tuple[TensorWeights, ...]
    depth: tuple[DepthWeights, ...]
    cosine: tuple[tuple[float | None, ...], ...] | None = None
    delta_norms: tuple[float | None, ...] | None = None
    norm_ratio: float | None = None
    delta_norm_ratio: float | None = None
    sign_conflict: float | None = None
    parent_share: tuple[float, ...] | None = None
    effective_parents: float | None = None
    unexplained: float | None = None
    mean_norm_ratio: float | None = None
    mean_delta_norm_ratio: float | None = None
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
