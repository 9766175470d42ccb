"""The probe of activations and predictions: the same tokens through every model, one model at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from merge_models.evals.inputs.memory import release
from merge_models.evals.inputs.models import kind_of
from merge_models.evals.measures.activations.diagnosis import Recording, TokenSamples, diagnose
from merge_models.evals.measures.activations.head import Positions, head_form, stored_positions
from merge_models.evals.measures.activations.hooks import hooked
from merge_models.evals.measures.activations.keepers import HiddenKeeper, Keeper, LogitsKeeper, SentenceKeeper
from merge_models.evals.measures.activations.moments import Budget, Moments
from merge_models.evals.measures.activations.sites import find_sites
from merge_models.evals.measures.activations.store import Store
from merge_models.evals.schema import ActivationDiagnosis, ModelRef
from merge_models.merge.errors import MergeError

if TYPE_CHECKING:
    from merge_models.evals.inputs.calibration import Batches

_TOKENS_AT_ONCE = 2048


class ActivationProbe:
    """Runs calibration text through models and compares what they compute.

    Of each model it keeps sums over all tokens at each site, the values of a fixed sample of tokens (on
    disk), and what its predictions can be made from again; never a model, nor logits of all tokens.

    Args:
        batches: the text, tokenized.
        weights: the parents' shares in weighted means, in their order; by default those of their records,
            else equal ones.
        seed: of the sample and the bootstrap.
        sample: tokens kept for CKA, drift and O-information (more are kept for spectra: four a unit, where
            that is little).
        predictions: next-token distributions that are compared.
        draws: of the bootstrap, over sequences.
    """

    def __init__(
        self,
        batches: Batches,
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        sample: int = 1024,
        predictions: int = 2048,
        draws: int = 200,
    ) -> None:
        self._ids = np.concatenate(list(batches.ids.values()))
        self._domains = [domain for domain, ids in batches.ids.items() for _ in ids]
        self._calibration = batches.record
        self._weights, self._seed, self._sample, self._draws = weights, seed, sample, draws
        self._positions = Positions.of(self._ids, self._domains, predictions, seed)
        self._store = Store()
        self._recordings: list[Recording] = []
        self._samples: TokenSamples | None = None
        self._seconds = 0.0

    @torch.inference_mode()
    def observe(self, ref: ModelRef, model: Any, tokenizer: Any | None = None) -> None:
        """Runs the text through one model.

        Raises:
            MergeError: the text does not fit the model: token ids beyond its embedding, sequences beyond its
                positions.
        """
        del tokenizer
        started = time.monotonic()
        self._check(ref, model)
        specs = find_sites(model)
        moments = Moments(
            len(self._ids), Budget(self._sample, len(specs)), self._store, self._seed, drop_first=True
        )
        keep = self._keeper(model)
        size = max(1, _TOKENS_AT_ONCE // self._ids.shape[1])
        device = next(model.parameters()).device
        with hooked(model, specs, moments.take) as passing:
            for start in range(0, len(self._ids), size):
                ids = torch.from_numpy(self._ids[start : start + size]).to(device)
                passing.begin()
                moments.begin(start, len(ids))
                keep.take(start, ids)
                release()
        self._recordings.append(Recording(ref, moments, keep.predictions(), keep.vectors()))
        self._seconds += time.monotonic() - started

    def finish(self) -> ActivationDiagnosis:
        """Compares the models seen.

        Raises:
            MergeError: there is no merge or no parent among them, or no site that all of them have.
        """
        started = time.monotonic()
        diagnosis, self._samples = diagnose(
            self._recordings,
            self._positions,
            self._calibration,
            store=self._store,
            weights=self._weights,
            sample=self._sample,
            seed=self._seed,
            draws=self._draws,
        )
        self._seconds += time.monotonic() - started
        return diagnosis.model_copy(update={"seconds": self._seconds})

    def samples(self) -> TokenSamples:
        """Returns the kept tokens' values, after ``finish``."""
        if self._samples is None:
            raise RuntimeError("finish() comes first")
        return self._samples

    def _check(self, ref: ModelRef, model: Any) -> None:
        embedding = model.get_input_embeddings() if kind_of(model) != "module" else None
        rows = getattr(getattr(embedding, "weight", None), "shape", (None,))[0]
        if rows is not None and int(self._ids.max()) >= rows:
            raise MergeError(
                f"{ref.name}: its embedding has {rows} rows, but the calibration text has token"
                f" {int(self._ids.max())}; evaluate models of one tokenizer"
            )
        longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if isinstance(longest, int) and 0 < longest < self._ids.shape[1]:
            raise MergeError(
                f"{ref.name}: takes {longest} positions, but the calibration sequences have"
                f" {self._ids.shape[1]}; give length={longest} or less"
            )

    def _keeper(self, model: Any) -> Keeper:
        """How this model is run, and what is kept of its output."""
        kind = kind_of(model)
        if kind == "encoder":
            return SentenceKeeper(model, len(self._ids))
        if kind == "module":
            return Keeper(model)
        form = head_form(model, torch.from_numpy(self._ids[:1]).to(next(model.parameters()).device))
        if form is not None:
            return HiddenKeeper(model, form, self._positions, self._store)
        rows = len(model.get_output_embeddings().weight)
        if not self._recordings:  # the first model decides how many; all are compared at the same ones
            self._positions = stored_positions(
                self._ids, self._domains, len(self._positions), rows, self._seed
            )
        return LogitsKeeper(model, self._positions, self._store, rows)
