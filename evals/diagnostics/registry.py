"""All diagnostics, in the order of report.json: an import and an entry for each."""

from __future__ import annotations

from functools import cache

from merge_models.evals.diagnostics.activations.cka import CKA
from merge_models.evals.diagnostics.activations.dimensions import PARTICIPATION_RATIO
from merge_models.evals.diagnostics.activations.dimensions import STABLE_RANK as STABLE_RANK_OF_ACTIVATIONS
from merge_models.evals.diagnostics.activations.drift import DRIFT
from merge_models.evals.diagnostics.activations.effective_rank import (
    EFFECTIVE_RANK as EFFECTIVE_RANK_OF_ACTIVATIONS,
)
from merge_models.evals.diagnostics.activations.effective_rank import (
    EFFECTIVE_RANK_RATIO,
    EFFECTIVE_RANK_VARIANCE,
)
from merge_models.evals.diagnostics.activations.mean_cosine import MEAN_COSINE
from merge_models.evals.diagnostics.activations.units import DEAD_UNITS, MASSIVE_UNITS
from merge_models.evals.diagnostics.activations.variance import VARIANCE, VARIANCE_RATIO
from merge_models.evals.diagnostics.diagnostic import Diagnostic, Place
from merge_models.evals.diagnostics.predictions.fisher_rao import FISHER_RAO
from merge_models.evals.diagnostics.predictions.js import JS
from merge_models.evals.diagnostics.predictions.kl import KL
from merge_models.evals.diagnostics.predictions.loss import ENTROPY, LOSS
from merge_models.evals.diagnostics.predictions.sentences import NEIGHBOUR_AGREEMENT, SENTENCE_COSINE
from merge_models.evals.diagnostics.predictions.top1 import TOP1_AGREEMENT
from merge_models.evals.diagnostics.tasks.degenerate import DISTINCT_2, EMPTY, LOOPING, LOW_DISTINCT_2
from merge_models.evals.diagnostics.weights.angle import LARGEST_ANGLE
from merge_models.evals.diagnostics.weights.cosine import COSINE
from merge_models.evals.diagnostics.weights.effective_rank import (
    DELTA_EFFECTIVE_RANK,
    EFFECTIVE_RANK,
    RANK_ACCURACY,
)
from merge_models.evals.diagnostics.weights.hyperspherical import HYPERSPHERICAL_ENERGY
from merge_models.evals.diagnostics.weights.mean_norm import MEAN_DELTA_NORM, MEAN_NORM
from merge_models.evals.diagnostics.weights.norm import DELTA_NORM, DELTA_NORMS, NORM
from merge_models.evals.diagnostics.weights.shares import EFFECTIVE_PARENTS, UNEXPLAINED
from merge_models.evals.diagnostics.weights.sign_conflict import SIGN_CONFLICT
from merge_models.evals.diagnostics.weights.spectral_norm import SPECTRAL_NORM
from merge_models.evals.diagnostics.weights.stable_rank import STABLE_RANK
from merge_models.evals.diagnostics.weights.subspace import SUBSPACE_OVERLAP

DIAGNOSTICS: tuple[Diagnostic, ...] = (
    # weights
    NORM,
    DELTA_NORM,
    DELTA_NORMS,
    SPECTRAL_NORM,
    STABLE_RANK,
    EFFECTIVE_RANK,
    DELTA_EFFECTIVE_RANK,
    RANK_ACCURACY,
    HYPERSPHERICAL_ENERGY,
    SIGN_CONFLICT,
    COSINE,
    SUBSPACE_OVERLAP,
    LARGEST_ANGLE,
    MEAN_NORM,
    MEAN_DELTA_NORM,
    EFFECTIVE_PARENTS,
    UNEXPLAINED,
    # activations of one model at a site
    VARIANCE,
    EFFECTIVE_RANK_OF_ACTIVATIONS,
    EFFECTIVE_RANK_VARIANCE,
    PARTICIPATION_RATIO,
    STABLE_RANK_OF_ACTIVATIONS,
    MEAN_COSINE,
    DEAD_UNITS,
    MASSIVE_UNITS,
    # activations of the merge against its parents' at a site
    VARIANCE_RATIO,
    EFFECTIVE_RANK_RATIO,
    CKA,
    DRIFT,
    # predictions
    ENTROPY,
    LOSS,
    KL,
    JS,
    FISHER_RAO,
    TOP1_AGREEMENT,
    SENTENCE_COSINE,
    NEIGHBOUR_AGREEMENT,
    # text
    EMPTY,
    LOOPING,
    LOW_DISTINCT_2,
    DISTINCT_2,
)


@cache
def at(place: Place) -> tuple[Diagnostic, ...]:
    """Returns the diagnostics that have a field in a record, in the order of the registry.

    Raises:
        ValueError: two of them have a field of one name.
    """
    there = tuple(diagnostic for diagnostic in DIAGNOSTICS if diagnostic.at(place))
    keys = [field.key for diagnostic in there for field in diagnostic.at(place)]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ValueError(f"two diagnostics fill {', '.join(sorted(twice))} of '{place}'; name one otherwise")
    return there


def shown(place: Place) -> tuple[Diagnostic, ...]:
    """Returns the same in the order in which reports show them: those that come first, then the others."""
    return tuple(sorted(at(place), key=lambda diagnostic: not diagnostic.first))
