"""Activations and predictions: the same calibration tokens through every model."""

from __future__ import annotations

from merge_models.evals.schema.record import Estimate, Record, Site


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
