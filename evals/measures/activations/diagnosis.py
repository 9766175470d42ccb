"""From what was kept of every model to the diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.inputs.memory import release
from merge_models.evals.measures.activations.head import Positions, Predictions
from merge_models.evals.measures.activations.moments import Moments, shared_sites
from merge_models.evals.measures.activations.predictions import compare_predictions
from merge_models.evals.measures.activations.sampling import group_of, resamples, spread
from merge_models.evals.measures.activations.sentences import compare_sentences
from merge_models.evals.measures.activations.sites import SiteSpec
from merge_models.evals.measures.activations.statistics import SiteOfAll, samples_of, spectrum
from merge_models.evals.measures.activations.store import Store
from merge_models.evals.schema import ActivationDiagnosis, Calibration, ModelRef, SiteActivations
from merge_models.merge.checkpoint.threads import torch_workers
from merge_models.merge.errors import MergeError, counted

_WITH_INTERVALS = ("embedding", "residual", "module")


@dataclass(frozen=True)
class Recording:
    """What was kept of one model."""

    ref: ModelRef
    moments: Moments
    predictions: Predictions | None = None
    vectors: Tensor | None = None


class TokenSamples:
    """The kept tokens' activations, read from disk as they are asked for.

    Attributes:
        sites: the sites that all models have.
        models: merge, parents, base.
        tokens: how many are given at each site, the same ones for all models; ``sequences``: which sequence
            each is from.
    """

    def __init__(
        self, recordings: Sequence[Recording], sites: Sequence[SiteSpec], sample: int, store: Store
    ) -> None:
        self._recordings = {r.ref.name: r for r in recordings}
        self._parents = [n for n, r in enumerate(recordings) if r.ref.role == "parent"]
        self._sample, self._store = sample, store
        self.sites = tuple(sites)
        self.models = tuple(r.ref for r in recordings)
        self.sequences = self._sums(self.sites[0])[0].sequences[self._rows(self.sites[0])]

    @property
    def tokens(self) -> int:
        return len(self.sequences)

    def read(self, site: SiteSpec) -> dict[str, np.ndarray]:
        """Returns activations at one site by model name: float32 [tokens, units].

        Units that are massive in a parent are left out for all models. Values may be NaN where a model's are.
        """
        samples = samples_of(self._store, self._sums(site), self._parents)
        rows = self._rows(site)
        return {ref.name: s.values.numpy()[rows] for ref, s in zip(self.models, samples, strict=True)}

    def _sums(self, site: SiteSpec):
        return [self._recordings[ref.name].moments.sites[site] for ref in self.models]

    def _rows(self, site: SiteSpec) -> np.ndarray:
        return spread(self._sample, self._sums(site)[0].sample.rows)


def diagnose(
    recordings: Sequence[Recording],
    positions: Positions | None,
    calibration: Calibration,
    *,
    store: Store,
    weights: Sequence[float] | None,
    sample: int,
    seed: int,
    draws: int,
) -> tuple[ActivationDiagnosis, TokenSamples]:
    """Compares the merge with its parents.

    Args:
        recordings: one a model, in any order; parents keep theirs.
        positions: the compared predictions, where there are any.
        weights: the parents' shares; by default their records', else equal ones.

    Raises:
        MergeError: there is no merge or no parent, or no site that all models have.
    """
    ordered = [r for role in ("merge", "parent", "base") for r in recordings if r.ref.role == role]
    parents = tuple(n for n, r in enumerate(ordered) if r.ref.role == "parent")
    if not parents or parents[0] != 1:
        raise MergeError("activations are compared between one merge and at least one parent; give both")
    specs = shared_sites([r.moments for r in ordered])
    if not specs:
        raise MergeError(
            "merge and parents have no layer of the same name and width; give the merge's parents"
        )
    shares = _shares([ordered[n].ref for n in parents], weights)
    sequences = ordered[0].moments.sequences
    drawn = resamples(int(group_of(sequences).max()) + 1, draws, seed)

    def record(spec: SiteSpec) -> SiteActivations:
        samples = samples_of(store, [r.moments.sites[spec] for r in ordered], parents)
        intervals = spec.site in _WITH_INTERVALS
        spectra = [spectrum(s, intervals) if s.finite else None for s in samples]
        rows = spread(sample, len(samples[0].values))
        record = SiteOfAll(spec, samples, spectra, shares, rows, torch.from_numpy(drawn)).record()
        release()
        return record

    refs = [r.ref for r in ordered]
    predictions = {r.ref.name: r.predictions for r in ordered if r.predictions is not None}
    vectors = {r.ref.name: r.vectors for r in ordered if r.vectors is not None}
    head = (
        compare_predictions(predictions, positions, refs, sequences, drawn)
        if predictions and positions
        else None
    )
    # Small eigenproblems are several times slower with threads of their own.
    with torch_workers(torch.get_num_threads()) as pool:
        sites = tuple(pool.map(record, specs))
    kept = TokenSamples(ordered, specs, sample, store)
    diagnosis = ActivationDiagnosis(
        calibration=calibration,
        sites=sites,
        head=head,
        sentences=compare_sentences(vectors, refs, drawn) if vectors else (),
        sample=kept.tokens,
        spectrum_tokens=max(ordered[0].moments.sites[spec].sample.rows for spec in specs),
    )
    return diagnosis, kept


def _shares(parents: Sequence[ModelRef], weights: Sequence[float] | None) -> tuple[float, ...]:
    """The parents' weights, to sum 1."""
    given = list(weights) if weights is not None else [ref.weight for ref in parents]
    if len(given) != len(parents):
        raise MergeError(
            f"{counted(len(given), 'weight')} for {counted(len(parents), 'parent')}; give one for each"
        )
    known = [w for w in given if w is not None]
    if len(known) < len(parents):
        known = [1.0] * len(parents)
    total = sum(known)
    if total <= 0 or min(known) < 0:
        known, total = [1.0] * len(parents), float(len(parents))
    return tuple(w / total for w in known)
