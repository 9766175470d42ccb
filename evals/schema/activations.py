"""Activations and predictions: the same calibration tokens through every model."""

from __future__ import annotations

from merge_models.evals.diagnostics.record import Record, Site
from merge_models.evals.schema.derived import with_diagnostics


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


class SiteStatistics(with_diagnostics("statistics")):
    """Statistics of one model's activations at one site; all centred per unit, massive units left out.

    Attributes:
        finite: whether all its activations there are finite; where not, nothing else is told.
    """

    finite: bool = True


class _Site(Record):
    site: Site
    layer: int | None
    module: str
    merge: SiteStatistics
    parents: tuple[SiteStatistics, ...]
    base: SiteStatistics | None = None


class SiteActivations(with_diagnostics("site", _Site)):
    """One site of the merge against the parents at the same site.

    Attributes:
        site: residual stream after the layer, the attention's or the MLP's output, or the embedding.
        layer: 0-based, None for the embedding; ``module``: the hooked module's name.
        merge: its statistics; ``parents`` and ``base``: theirs, parents in the report's order.
    """


class _Other(Record):
    model: str


class Divergence(with_diagnostics("divergence", _Other)):
    """Distance of the merge's next-token distributions from another model's, meaned over tokens.

    Attributes:
        model: name of the other model.
        kl_by_domain: the KL divergence on each domain of the calibration text.
    """

    kl_by_domain: dict[str, float] = {}


class Head(with_diagnostics("head")):
    """Predictions: what each model makes of the calibration text, and the merge's divergences.

    Attributes:
        divergences: merge against each parent and the base.
        parents_js: mean Jensen-Shannon distance between pairs of parents, the scale to read the others by.
        predictions: how many next-token distributions were compared.
    """

    divergences: tuple[Divergence, ...] = ()
    parents_js: float | None = None
    predictions: int = 0


class SentenceDrift(with_diagnostics("sentence", _Other)):
    """Distance of the merge's sentence vectors from another encoder's.

    A sentence's vector is the mean of the last hidden states of its tokens, the first left out.

    Attributes:
        model: name of the other model.
    """


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
