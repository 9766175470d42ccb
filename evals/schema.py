"""The types of an evaluation: what every diagnostic returns and what ``report.json`` holds.

Every class is frozen and strict, so a report read back is checked like one just made. A number that is not
defined (a
ratio to zero, a statistic of a layer with NaN) is ``None``, never NaN: JSON has no NaN. ``SCHEMA_VERSION``
grows when a
field changes its meaning or goes; new fields do not change it.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1

Role = Literal["merge", "parent", "base"]
Site = Literal["embedding", "residual", "attention", "mlp", "module"]
Status = Literal["healthy", "degraded", "collapsed"]
Basis = Literal["weights", "activations", "activations and tasks"]


class Record(BaseModel):
    """A frozen record; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A measured number with its 95 % bootstrap interval, where one was drawn."""

    value: float
    low: float | None = None
    high: float | None = None


class ModelRef(Record):
    """A model of the evaluation.

    Attributes:
        name: its short name, unique in the report; tables and charts use it.
        role: merge, parent or base.
        weight: its share among the parents' weighted mean (parents only; they sum to 1).
        parameters: how many numbers its tensors hold.
    """

    name: str
    role: Role
    weight: float | None = None
    parameters: int | None = None


# Weights: no forward pass.


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
        norm_ratio, delta_norm_ratio: of the whole model.
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


# Activations: the same calibration tokens through every model.


class Calibration(Record):
    """What the models were fed.

    Attributes:
        source: ``built-in`` or the data's file name; ``digest``: SHA-256 of the text (of the batches, in the
        API).
        sequences, tokens: how many, without the first token of each sequence, which is dropped everywhere.
        seed: of every random choice (token sample, bootstrap, shuffles).
        domains: what the text consists of, and each domain's tokens.
        unigram_entropy: entropy in nats of each domain's token frequencies: the loss of guessing by
            frequency.
    """

    source: str
    digest: str
    sequences: int
    tokens: int
    seed: int
    domains: dict[str, int] = {}
    unigram_entropy: dict[str, float] = {}


class SiteStatistics(Record):
    """Statistics of one model's activations at one site; all centred per unit, massive units left out.

    Attributes:
        variance: mean over units of the variance over tokens.
        effective_rank: exp entropy of the normalised singular values; ``effective_rank_variance``: of the
            eigenvalues of the covariance (a smaller number); ``participation_ratio``: (sum l)^2 / sum l^2;
            ``stable_rank``: sum l / max l. stable <= participation <= effective_rank_variance <=
            effective_rank.
        mean_cosine: mean cosine between pairs of different tokens' (uncentred) activations.
        dead_units: share of units whose variance is under 1e-6 of the mean unit's.
        massive_units: units left out: their largest magnitude is over 100 times the median of what is not
            0, in a parent (Sun et al. 2024); the list is the model's own.
    """

    variance: float | None = None
    effective_rank: float | None = None
    effective_rank_variance: float | None = None
    participation_ratio: float | None = None
    stable_rank: float | None = None
    mean_cosine: float | None = None
    dead_units: float | None = None
    massive_units: tuple[int, ...] = ()
    finite: bool = True


class SiteActivations(Record):
    """One site of the merge against the parents at the same site.

    Attributes:
        site: residual stream after the layer, the attention's or the MLP's output, or the embedding.
        layer: 0-based, None for the embedding; ``module``: the hooked module's name.
        merge: its statistics; ``parents`` and ``base``: theirs, parents in the report's order.
        variance_ratio: median over units of the merge's variance over the parents' weighted mean variance
        (REPAIR, Jordan et al.
            2023); ``variance_ratio_p5``: its 5th percentile over units.
        effective_rank_ratio: merge over the parents' weighted mean, of ``effective_rank``.
        cka: linear CKA of the merge to each parent (debiased when width exceeds samples).
        drift: mean over tokens of ||h_merge - h_parent|| / ||h_parent||, to each parent.
    """

    site: Site
    layer: int | None
    module: str
    merge: SiteStatistics
    parents: tuple[SiteStatistics, ...]
    base: SiteStatistics | None = None
    variance_ratio: Estimate | None = None
    variance_ratio_p5: float | None = None
    effective_rank_ratio: Estimate | None = None
    cka: tuple[float | None, ...] = ()
    drift: tuple[float | None, ...] = ()


class Divergence(Record):
    """Distance of the merge's next-token distributions from another model's, meaned over tokens.

    Attributes:
        model: name of the other model.
        kl: KL(other || merge), nats; ``js``: Jensen-Shannon, nats (at most ln 2); ``fisher_rao``: the angle
            2 arccos(sum sqrt(p q)), at most pi.
        top1_agreement: share of tokens at which both most likely tokens agree.
        domain: the same KL for each domain of the calibration text.
    """

    model: str
    kl: Estimate
    js: Estimate
    fisher_rao: Estimate
    top1_agreement: Estimate
    kl_by_domain: dict[str, float] = {}


class Head(Record):
    """Predictions: entropy and loss of each model on the calibration tokens, and the merge's divergences.

    Attributes:
        entropy: mean entropy of the next-token distributions, nats, by model name.
        loss: mean next-token cross-entropy on the calibration text, nats, by model name; ``loss_by_domain``
            likewise, model then domain.
        divergences: merge against each parent and the base.
        parents_js: mean Jensen-Shannon distance between pairs of parents, the scale to read the others by.
        predictions: how many next-token distributions were compared.
    """

    entropy: dict[str, Estimate] = {}
    loss: dict[str, Estimate] = {}
    loss_by_domain: dict[str, dict[str, float]] = {}
    divergences: tuple[Divergence, ...] = ()
    parents_js: float | None = None
    predictions: int = 0


class SentenceDrift(Record):
    """Distance of the merge's sentence vectors from another encoder's.

    A sentence's vector is the mean of the last hidden states of its tokens, the first left out.

    Attributes:
        model: name of the other model.
        cosine: mean over sentences of the cosine between both models' vectors.
        neighbour_agreement: share of sentences whose most similar other sentence is the same to both.
    """

    model: str
    cosine: Estimate
    neighbour_agreement: Estimate


class ActivationDiagnosis(Record):
    """Activations of a merge against its parents', on the same tokens.

    Attributes:
        sites: in the model's order; ``head``: predictions, for models that make any; ``sentences``: for
            encoders.
        sample: tokens kept for CKA, drift and O-information.
        spectrum_tokens: tokens that spectra, mean cosine and the median magnitude are taken from; variances
            and largest magnitudes are of all tokens.
    """

    calibration: Calibration
    sites: tuple[SiteActivations, ...]
    head: Head | None = None
    sentences: tuple[SentenceDrift, ...] = ()
    sample: int
    spectrum_tokens: int | None = None
    seconds: float = 0.0


# Information


class OInformation(Record):
    """O-information of a system of variables (or blocks), by Gaussian copula, in nats.

    Attributes:
        what: which system; ``layer``: where; ``variables``: how many blocks, ``dimensions``: how many
        columns in all.
        samples: T; refused (``refused`` says why and how many are needed) when T < 8 x dimensions.
        o_information: TC - DTC (Rosas et al. 2019), bias corrected; ``tc``, ``dtc``, ``s_information`` = TC
        + DTC.
        null: mean and standard deviation of the O-information of shuffled variables.
        reading: redundant, synergistic or indistinguishable from the null.
    """

    what: str
    layer: int | None
    variables: int
    dimensions: int
    samples: int
    refused: str | None = None
    o_information: Estimate | None = None
    tc: float | None = None
    dtc: float | None = None
    s_information: float | None = None
    null_mean: float | None = None
    null_std: float | None = None
    reading: Literal["redundant", "synergistic", "indistinguishable"] | None = None


class InformationDiagnosis(Record):
    """O-information between parents and merge (one system a layer) and within layers (one a layer and
    model)."""

    between: tuple[OInformation, ...] = ()
    within: dict[str, tuple[OInformation, ...]] = {}


# Tasks


class TaskScore(Record):
    """One model's score on one task.

    Attributes:
        task: its name (a domain for perplexity, a JSONL's ``task`` field for multiple choice); also the
        skill's.
        metric: ``perplexity`` (lower is better), ``accuracy`` (by likelihood), ``accuracy per byte`` (by
            likelihood over the choice's length), ``exact match``, or what the external harness calls it.
        model: name of the model; ``n``: items or tokens scored.
        score: with a bootstrap interval over blocks of tokens, for shares Wilson's interval, for the harness
            1.96 of its standard errors.
    """

    task: str
    metric: str
    higher_is_better: bool
    model: str
    score: Estimate
    n: int


class Recovery(Record):
    """How much of the best parent's skill the merge kept, one task.

    Attributes:
        fraction: (merge - reference) / (best parent - reference), of logarithms for perplexity; the reference
            is the base where there is one, else the worst parent. None where the best parent does not beat
            the reference beyond chance.
        low, high: the fraction's 95 % interval, by a bootstrap over the same items for all three.
    """

    task: str
    metric: str
    best_parent: str
    reference: str
    fraction: float | None
    low: float | None = None
    high: float | None = None


class Generation(Record):
    """Greedy continuations of calibration prompts: counters of degenerate text.

    Attributes:
        model: whose; ``n``: continuations.
        empty, looping, low_distinct: share of continuations that are empty, that repeat (a trigram three
        times or a
            word three times running), whose distinct-2 (unique bigrams over bigrams) is under 0.5.
        distinct2: mean distinct-2.
        samples: a few continuations, for the reader.
    """

    model: str
    n: int
    empty: float
    looping: float
    low_distinct: float
    distinct2: float | None
    samples: tuple[tuple[str, str], ...] = ()


class TaskDiagnosis(Record):
    """Scores of merge, parents and base; the mean recovery never stands without the minimum."""

    scores: tuple[TaskScore, ...] = ()
    recovery: tuple[Recovery, ...] = ()
    mean_recovery: float | None = None
    least_recovery: float | None = None
    least_recovered: str | None = None
    generation: tuple[Generation, ...] = ()


# Verdict

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
        status: the worst of the findings that the calibration lets decide.
        score: predicted damage from 0 (as the parents) up, by which merges rank; calibrated against measured
            loss. ``score_kind``: ``lost share`` of what the parents know, where predictions tell; else
            ``drift``, the largest mean distance from the parents' residual streams over their norms.
        basis: ``weights`` (screening only), ``activations`` or ``activations and tasks``.
        by_skill: status of each task or domain; ``by_layer``: of each layer.
    """

    status: Status
    score: float | None = None
    score_kind: Literal["lost share", "drift"] | None = None
    basis: Basis
    summary: str
    findings: tuple[Finding, ...] = ()
    by_skill: dict[str, Status] = {}
    by_layer: dict[int, Status] = {}


class LayerRepair(Record):
    """One repaired module: variance ratio to the parents before and after."""

    module: str
    layer: int | None
    variance_ratio_before: float | None
    variance_ratio_after: float | None
    folded_into: tuple[str, ...]


class RepairReport(Record):
    """What a repair changed.

    Attributes:
        layers: the repaired modules, in order.
        loss_before, loss_after: next-token loss on held-out calibration text, nats (None where there is
        none).
    """

    layers: tuple[LayerRepair, ...]
    loss_before: float | None = None
    loss_after: float | None = None
    calibration: Calibration | None = None


class Evaluation(Record):
    """Everything measured of one merge; ``report.json`` is this record.

    Attributes:
        models: the merge first, then parents, then the base.
        verdict: what it all says; None when only parts were asked for.
        versions: of merge-models, torch and transformers.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    versions: dict[str, str] = {}
    models: tuple[ModelRef, ...]
    verdict: Verdict | None = None
    weights: WeightDiagnosis | None = None
    activations: ActivationDiagnosis | None = None
    information: InformationDiagnosis | None = None
    tasks: TaskDiagnosis | None = None
    repair: RepairReport | None = None
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @property
    def merge(self) -> ModelRef:
        """The merged model."""
        return next(model for model in self.models if model.role == "merge")

    @property
    def parents(self) -> tuple[ModelRef, ...]:
        """The parents, in the order of every per-parent tuple."""
        return tuple(model for model in self.models if model.role == "parent")

    @property
    def base(self) -> ModelRef | None:
        """The base, where there is one."""
        return next((model for model in self.models if model.role == "base"), None)

    def to_json(self) -> str:
        """The record as JSON, fields in a fixed order; ``Evaluation.from_json`` reads it back."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Reads ``to_json``'s text; raises ``pydantic.ValidationError`` for anything else."""
        return cls.model_validate_json(text)

    def to_markdown(self) -> str:
        """A section for a model card: the verdict, findings and main tables."""
        from merge_models.evals.report.markdown import markdown

        return markdown(cast(Any, self))  # one class, that type checkers meet under two paths

    def to_html(self) -> str:
        """One self-contained page: no network, charts inside."""
        from merge_models.evals.report.page import page

        return page(cast(Any, self))


class Inspection(Record):
    """Parents before a merge: ``merge-models inspect``.

    Attributes:
        models: parents, then the base.
        compatible: whether they can be merged as they are; ``problems``: what stands in the way, one line
        each.
        tensors, depth: parent geometry, with the merge's fields empty; None when only headers were read.
        cosine, delta_norms, sign_conflict: as in ``WeightDiagnosis``.
        curvature: largest relative gap, over the matrices, between the plain mean's norm and the parents'
            mean norm (0: flat).
        advice: strategies that fit, best first, each with its reason.
    """

    schema_version: int = SCHEMA_VERSION
    models: tuple[ModelRef, ...]
    compatible: bool
    problems: tuple[str, ...] = ()
    tensors: tuple[TensorWeights, ...] | None = None
    depth: tuple[DepthWeights, ...] | None = None
    cosine: tuple[tuple[float | None, ...], ...] | None = None
    delta_norms: tuple[float | None, ...] | None = None
    sign_conflict: float | None = None
    curvature: float | None = None
    advice: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """The record as JSON."""
        return self.model_dump_json(indent=1)

    def to_markdown(self) -> str:
        """Tables for a card."""
        from merge_models.evals.report.inspection import inspection_markdown

        return inspection_markdown(cast(Any, self))

    def to_text(self, width: int = 100) -> str:
        """The same without markup, for a terminal of so many columns."""
        from merge_models.evals.report.inspection import inspection_text

        return inspection_text(cast(Any, self), width)
