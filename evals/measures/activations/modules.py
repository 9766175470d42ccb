"""Any ``nn.Module``: batches of whatever it takes, instead of a tokenized text."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from merge_models.evals.inputs.arguments import checked_batches, checked_count, checked_models, checked_shares
from merge_models.evals.measures.activations.diagnosis import Recording, diagnose
from merge_models.evals.measures.activations.head import Positions, StoredLogits
from merge_models.evals.measures.activations.hooks import hooked
from merge_models.evals.measures.activations.moments import Budget, Moments
from merge_models.evals.measures.activations.sampling import kept_positions, spread
from merge_models.evals.measures.activations.sites import SiteSpec, find_sites, first_tensor, given_sites
from merge_models.evals.measures.activations.store import Store
from merge_models.evals.schema import ActivationDiagnosis, Calibration, ModelRef
from merge_models.merge.errors import MergeError, did_you_mean, printable

Forward = Callable[[nn.Module, Any], Any]
DOMAIN = "batches"
_STORED_BYTES, _PREDICTIONS = 256 << 20, 4096


def diagnose_modules(
    merge: nn.Module,
    parents: Sequence[nn.Module],
    base: nn.Module | None = None,
    *,
    batches: Sequence[Any],
    forward: Forward | None = None,
    sites: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    labels: Sequence[Tensor] | None = None,
    seed: int = 0,
    sample: int = 1024,
    draws: int = 200,
) -> ActivationDiagnosis:
    """Measures activations of a merged module against its parents', on the same batches.

    >>> parent = nn.Sequential(nn.Linear(4, 3))
    >>> diagnosis = diagnose_modules(parent, [parent], batches=[torch.randn(64, 4)])
    >>> diagnosis.sites[0].variance_ratio.value
    1.0

    Args:
        merge, parents, base: modules of one architecture. They are run in eval mode, on their devices, and
            left as they were.
        batches: what ``forward`` takes; the first dimension of the first tensor in each counts samples, which
            are what the bootstrap draws.
        forward: runs a module on a batch; by default ``module(*batch)`` for a tuple or list,
            ``module(**batch)`` for a dict, else ``module(batch)``.
        sites: names of the modules to measure; by default found by structure (``find_sites``): the layers of
            a stack with their attention and MLP, or every leaf. The first token is not dropped.
        weights: the parents' shares in weighted means; equal by default.
        logits: takes logits, [samples, classes] or [samples, places, classes], from what ``forward`` returns;
            predictions are then compared too. Of many, 4096 are.
        labels: for each batch the right classes, [samples] or [samples, places]: for the loss.
        seed, sample, draws: as in ``ActivationProbe``.

    Raises:
        MergeError: there is no batch or no parent, a module does not run on a batch, has no such site, or
            modules have no site in common.
    """
    started = time.monotonic()
    parents, batches = checked_models(parents), checked_batches(batches)
    seed = checked_count(seed, "seed")
    weights = None if weights is None else checked_shares(weights, len(parents))
    counts = [_samples_in(batch) for batch in batches]
    if not counts or not parents:
        raise MergeError("modules are compared on at least one batch, with at least one parent; give both")
    store, recordings = Store(), []
    positions: Positions | None = None
    for ref, module in _models(merge, parents, base):
        keeper = _Logits(store, sum(counts), labels, seed) if logits is not None else None
        specs = _sites(ref, module, sites)
        moments = Moments(sum(counts), Budget(sample, len(specs)), store, seed, drop_first=False)
        with torch.inference_mode(), in_eval_mode(module), hooked(module, specs, moments.take) as passing:
            start = 0
            for batch, count in zip(batches, counts, strict=True):
                passing.begin()
                moments.begin(start, count)
                output = _run(ref, forward or call, module, batch)
                if keeper is not None and logits is not None:
                    keeper.take(start, logits(output))
                start += count
        recordings.append(Recording(ref, moments, keeper.kept if keeper else None))
        positions = keeper.positions if keeper else None
    diagnosis, _ = diagnose(
        recordings,
        positions,
        _calibration(batches, sum(counts), labels, seed),
        store=store,
        weights=weights,
        sample=sample,
        seed=seed,
        draws=draws,
    )
    return diagnosis.model_copy(update={"seconds": time.monotonic() - started})


class _Logits:
    """Keeps a module's logits: of all samples and places, or of 4096 of them."""

    def __init__(self, store: Store, samples: int, labels: Sequence[Tensor] | None, seed: int) -> None:
        self._store, self._samples, self._seed = store, samples, seed
        self._labels = None if labels is None else torch.cat([part.cpu() for part in labels]).numpy()
        self.positions: Positions | None = None
        self.kept: StoredLogits | None = None

    def take(self, start: int, logits: Tensor) -> None:
        rows = logits.reshape(len(logits), -1, logits.shape[-1]).float().cpu()
        if self.positions is None or self.kept is None:
            self.positions = self._choose(rows.shape[1], rows.shape[2])
            region = self._store.allocate(len(self.positions), rows.shape[2])
            self.kept = StoredLogits(self._store, region)
        within = self.positions.within(start, start + len(rows))
        chosen = rows[self.positions.rows[within] - start, self.positions.columns[within]]
        self._store.write(self.kept.kept, within.start, chosen.numpy())

    def _choose(self, places: int, classes: int) -> Positions:
        wanted = max(1, min(_PREDICTIONS, _STORED_BYTES // (4 * classes)))
        samples = spread(wanted, self._samples)
        each = max(1, min(places, wanted // self._samples))
        columns = [kept_positions(self._seed, int(s), places, each) for s in samples]
        rows, flat = np.repeat(samples, each), np.concatenate(columns)
        labels = None if self._labels is None else self._labels.reshape(self._samples, -1)[rows, flat]
        return Positions(rows, flat, labels, (DOMAIN,) * len(rows))


def _models(
    merge: nn.Module, parents: Sequence[nn.Module], base: nn.Module | None
) -> Iterator[tuple[ModelRef, nn.Module]]:
    for number, parent in enumerate(parents, 1):
        yield ModelRef(name=f"parent {number}", role="parent"), parent
    if base is not None:
        yield ModelRef(name="base", role="base"), base
    yield ModelRef(name="merge", role="merge"), merge


def _sites(ref: ModelRef, module: nn.Module, names: Sequence[str] | None) -> list[SiteSpec]:
    if names is None:
        return find_sites(module)
    try:
        return given_sites(module, names)
    except KeyError as error:
        known = [name for name, _ in module.named_modules() if name]
        raise MergeError(
            f"{ref.name} has no module '{printable(error.args[0])}'{did_you_mean(error.args[0], known)}"
        ) from None


def call(module: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, (tuple, list)) else module(batch)


def _run(ref: ModelRef, forward: Forward, module: nn.Module, batch: Any) -> Any:
    try:
        return forward(module, batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MergeError(
            f"{ref.name} does not run on a batch ({printable(lines[0], 200)}); give forward=, a function of"
            " module and batch"
        ) from error


def _samples_in(batch: Any) -> int:
    first = first_tensor(batch)
    if first is None or not first.ndim or not len(first):
        raise MergeError("a batch holds no tensor of samples; give tensors, tuples or dicts of them")
    return len(first)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _tensors(value)


def _calibration(
    batches: Sequence[Any], samples: int, labels: Sequence[Tensor] | None, seed: int
) -> Calibration:
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in _tensors(batch):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return Calibration(
        source="batches",
        digest=digest.hexdigest(),
        sequences=samples,
        tokens=samples,
        seed=seed,
        domains={DOMAIN: samples},
        unigram_entropy={} if labels is None else {DOMAIN: _entropy(labels)},
    )


def _entropy(labels: Sequence[Tensor]) -> float:
    """Entropy of the labels' frequencies, nats: the loss of guessing by frequency."""
    shares = torch.cat([part.flatten().cpu() for part in labels]).unique(return_counts=True)[1].double()
    return float(torch.special.entr(shares / shares.sum()).sum())


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Keeps a module in eval mode; afterwards each part is in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
