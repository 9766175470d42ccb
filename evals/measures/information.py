"""O-information by Gaussian copula: what parents and merge, or the parts of a layer, say together.

For blocks of variables X_1 ... X_B, with entropies H in nats (Watanabe 1960; Han 1978; Rosas et al. 2019):

- total correlation ``TC = sum_b H(X_b) - H(X)``: what the blocks share, each counted against all;
- dual total correlation ``DTC = H(X) - sum_b H(X_b | the others)``: what is known from more than one block;
- O-information ``Omega = TC - DTC``: positive where blocks repeat each other (redundancy), negative where
  they tell something only together (synergy); ``S = TC + DTC``. For three blocks Omega is the co-information
  ``I(A;B) - I(A;B|C)``; for two it is zero.

Columns are replaced by normal quantiles of their ranks (Gaussian copula, Ince et al. 2017), so monotone
transformations of a column change nothing, and all entropies are log-determinants of one correlation matrix
and its inverse. That is exact for a Gaussian copula; otherwise TC is a lower bound in practice, and Omega has
no guarantee of sign: XOR of bits, which no correlation shows, is not seen, ``X3 = X1 + X2`` is.

Entropies are corrected for the bias of few samples (the mean log-determinant of a Wishart matrix). A merge is
nearly a function of its parents, so a matrix of both is nearly singular: a ridge of 1e-3 on every correlation
matrix bounds what an exact relation counts for. Values compare only between systems of equal blocks, columns
and samples. Tokens of one sequence resemble each other, so intervals come from resampled sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.schema import Estimate, InformationDiagnosis, OInformation
from merge_models.merge.errors import MergeError

if TYPE_CHECKING:
    from merge_models.evals.measures.activations.diagnosis import TokenSamples

Blocks = Sequence[slice | Sequence[int]]

RIDGE = 1e-3
SAMPLES_PER_COLUMN = 8
SHUFFLES = 64
DEVIATIONS = 3.0
"""How many standard deviations of the shuffled systems Omega must leave their mean by, to be read."""

DIMENSIONS = 8
"""Principal components of a model in a system of parents and merge."""

GROUPS, GROUP_DIMENSIONS = 8, 2
"""Groups of units in a layer, and principal components of each."""


def o_information(
    x: np.ndarray | Tensor,
    blocks: Blocks,
    *,
    what: str,
    layer: int | None = None,
    seed: int = 0,
    bootstrap: int = 200,
    sequences: np.ndarray | None = None,
    ridge: float = RIDGE,
) -> OInformation:
    """Measures the O-information of blocks of columns.

    >>> noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    >>> o_information(noise, [[0], [1], [2]], what="noise", bootstrap=0).reading
    'indistinguishable'

    Args:
        x: [samples, columns].
        blocks: two or more, without common columns; columns in none of them are left out.
        what, layer: what the record calls it.
        seed: of shuffles and resamples.
        bootstrap: resamples for the 95 % interval; 0: none. Resampling repeats samples, which looks like
            dependence: its spread is kept, and centred on the value.
        sequences: [samples], which samples stay together when they are resampled [default: each is alone].
        ridge: added to the diagonal of the correlation matrix.

    Returns:
        The record; its ``refused`` says why there is no number: fewer samples than 8 a column (below that
        the correction of the bias fails), or values that are not finite.

    Raises:
        MergeError: fewer than two blocks, or a block that is empty, overlaps another or leaves ``x``.
    """
    values = x.double() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, dtype=np.float64))
    places = _places(blocks, values.shape[1])
    columns = [column for place in places for column in place]
    samples, dimensions = len(values), len(columns)
    record = OInformation(
        what=what, layer=layer, variables=len(places), dimensions=dimensions, samples=samples
    )
    refused = None
    if samples < SAMPLES_PER_COLUMN * dimensions:
        refused = (
            f"{samples} samples are too few for {dimensions} columns: {SAMPLES_PER_COLUMN * dimensions} are"
            " needed; measure more tokens, or fewer columns"
        )
    elif not bool(torch.isfinite(values[:, columns]).all()):
        refused = "the values hold NaN or Inf"
    if refused:
        return record.model_copy(update={"refused": refused})
    normal = gaussian_ranks(values[:, columns])
    local = _consecutive([len(place) for place in places])
    tc, dtc = (float(v) for v in measures(correlation(normal, ridge), local, samples))
    rng = np.random.default_rng(seed)
    null = _shuffled(normal, local, ridge, rng)
    low = high = None
    if bootstrap:
        drawn = _resampled(normal, local, ridge, rng, bootstrap, sequences)
        down, middle, up = np.quantile(drawn, (0.025, 0.5, 0.975))
        low, high = tc - dtc + down - middle, tc - dtc + up - middle
    omega = Estimate(value=tc - dtc, low=low, high=high)
    return record.model_copy(
        update={
            "o_information": omega,
            "tc": tc,
            "dtc": dtc,
            "s_information": tc + dtc,
            "null_mean": float(null.mean()),
            "null_std": float(null.std()),
            "reading": _reading(omega, float(null.mean()), float(null.std())),
        }
    )


def _places(blocks: Blocks, columns: int) -> list[list[int]]:
    places = [list(range(columns)[b]) if isinstance(b, slice) else [int(i) for i in b] for b in blocks]
    taken = [column for place in places for column in place]
    if len(places) < 2 or not all(places):
        raise MergeError("O-information needs two or more blocks of columns, none of them empty")
    if len(set(taken)) < len(taken) or not all(0 <= column < columns for column in taken):
        raise MergeError(f"blocks of columns overlap or leave the {columns} columns there are")
    return places


def _consecutive(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum([0, *widths])
    return [slice(int(a), int(b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def gaussian_ranks(x: Tensor) -> Tensor:
    """Returns normal quantiles of each column's ranks, ``Phi^-1(rank / (T + 1))``, to mean 0 and variance 1.

    Ties share their mean rank. A constant column becomes zero: it depends on nothing.
    """
    samples = len(x)
    out = torch.empty_like(x, dtype=torch.float64)
    for column, values in enumerate(x.T):
        _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
        last = counts.cumsum(0)
        rank = (last - (counts - 1) / 2)[inverse]
        out[:, column] = torch.special.ndtri(rank / (samples + 1))
    out -= out.mean(0)
    deviation = out.square().sum(0).div(max(samples - 1, 1)).sqrt()
    return out / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def correlation(normal: Tensor, ridge: float) -> Tensor:
    """Returns ``g'g / (T - 1)`` of ``[T, n]``, its means taken out, plus the ridge on the diagonal: [n,
    n]."""
    centred = normal - normal.mean(0)
    covariance = centred.T @ centred / max(len(normal) - 1, 1)
    return covariance + ridge * torch.eye(normal.shape[1], dtype=covariance.dtype)


def measures(covariance: Tensor, blocks: Sequence[slice], samples: int | None) -> tuple[Tensor, Tensor]:
    """Returns TC and DTC of Gaussian blocks, from their covariance ``[..., n, n]``.

    ``TC = (sum_b log|C_bb| - log|C|) / 2`` and ``DTC = (log|C| + sum_b log|P_bb|) / 2`` with P the inverse.

    Args:
        samples: T, for the correction of the bias; None where the covariance is exact.
    """
    n = covariance.shape[-1]
    whole = torch.linalg.slogdet(covariance)[1]
    precision = torch.linalg.inv(covariance)
    own = sum(torch.linalg.slogdet(covariance[..., b, b])[1] for b in blocks)
    given = sum(torch.linalg.slogdet(precision[..., b, b])[1] for b in blocks)
    tc, dtc = (own - whole) / 2, (whole + given) / 2
    if samples is not None:
        widths = [b.stop - b.start for b in blocks]
        tc = tc + entropy_bias(n, samples) - sum(entropy_bias(w, samples) for w in widths)
        dtc = dtc + (len(widths) - 1) * entropy_bias(n, samples)
        dtc = dtc - sum(entropy_bias(n - w, samples) for w in widths)
    return tc, dtc


def entropy_bias(n: int, samples: int) -> float:
    """Returns by how much a Gaussian's entropy comes out wrong from the covariance of so many samples
    (negative).

    ``(n log(2 / (T - 1)) + sum_{k=1}^n psi((T - k) / 2)) / 2``: half the mean error of the log-determinant.
    """
    k = torch.arange(1, n + 1, dtype=torch.float64)
    half = torch.special.digamma((samples - k) / 2).sum() + n * np.log(2 / (samples - 1))
    return float(half) / 2


def _omegas(covariances: Sequence[Tensor], blocks: Sequence[slice], samples: int) -> np.ndarray:
    tc, dtc = measures(torch.stack(list(covariances)), blocks, samples)
    return (tc - dtc).numpy()


def _shuffled(normal: Tensor, blocks: Sequence[slice], ridge: float, rng: np.random.Generator) -> np.ndarray:
    """Omega with each block's samples in an order of its own: blocks keep their inside, and share nothing."""
    samples = len(normal)
    terms = []
    for _ in range(SHUFFLES):
        parts = [normal[torch.from_numpy(rng.permutation(samples)), block] for block in blocks]
        terms.append(correlation(torch.cat(parts, dim=1), ridge))
    return _omegas(terms, blocks, samples)


def _resampled(
    normal: Tensor,
    blocks: Sequence[slice],
    ridge: float,
    rng: np.random.Generator,
    count: int,
    sequences: np.ndarray | None,
) -> np.ndarray:
    """Omega of samples drawn again with replacement, whole sequences at a time; ranks are not taken anew."""
    groups = np.arange(len(normal)) if sequences is None else np.unique(sequences, return_inverse=True)[1]
    number = int(groups.max()) + 1
    layers = []
    for _ in range(count):
        times = np.bincount(rng.integers(number, size=number), minlength=number)[groups]
        layers.append(correlation(normal[torch.from_numpy(np.repeat(np.arange(len(normal)), times))], ridge))
    return _omegas(layers, blocks, len(normal))


def _reading(
    omega: Estimate, mean: float, deviation: float
) -> Literal["redundant", "synergistic", "indistinguishable"]:
    """Which side of the shuffled systems Omega lies on: beyond DEVIATIONS, and its interval with it."""
    low = omega.value if omega.low is None else omega.low
    high = omega.value if omega.high is None else omega.high
    if omega.value > mean + DEVIATIONS * deviation and low > mean:
        return "redundant"
    if omega.value < mean - DEVIATIONS * deviation and high < mean:
        return "synergistic"
    return "indistinguishable"


def diagnose_information(
    samples: TokenSamples,
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
    bootstrap: int = 100,
) -> InformationDiagnosis:
    """Measures O-information in the residual stream: between parents and merge, and within each of them.

    *Between*: one block a model, its activations on the principal components of the parents' pooled ones
    (the same components for all models). Positive: the merge repeats what the parents have in common;
    negative: it carries what only both together tell.
    *Within*: groups of neighbouring units, each on its own leading components (the parents' pooled ones
    again), for the merge and each parent: whether a merge's units work together as its parents' do.

    Args:
        samples: the same tokens' activations of all models.
        weights: the parents' shares in what is pooled [default: equal].
        seed: of shuffles and resamples.
        bootstrap: resamples of sequences for each interval.
    """
    merge = next(ref.name for ref in samples.models if ref.role == "merge")
    parents = [ref.name for ref in samples.models if ref.role == "parent"]
    shares = [1 / len(parents)] * len(parents) if weights is None else list(weights)
    options = {"seed": seed, "bootstrap": bootstrap, "sequences": np.asarray(samples.sequences)}
    between: list[OInformation] = []
    within: dict[str, list[OInformation]] = {name: [] for name in (merge, *parents)}
    for site in samples.sites:
        if site.site != "residual":
            continue
        values = samples.read(site)
        held = {name: torch.from_numpy(values[name]).float() for name in (*parents, merge)}
        between.append(_between(held, parents, merge, shares, site.layer, options))
        groups = _unit_groups(next(iter(held.values())).shape[1])
        bases = [_components([held[p][:, g] for p in parents], shares, GROUP_DIMENSIONS) for g in groups]
        for name in within:
            parts = [held[name][:, g] @ basis for g, basis in zip(groups, bases, strict=True)]
            within[name].append(
                _system(parts, what=f"groups of units of {name}", layer=site.layer, **options)
            )
    return InformationDiagnosis(
        between=tuple(between), within={name: tuple(records) for name, records in within.items()}
    )


def _between(held, parents, merge, shares, layer, options) -> OInformation:
    """As many components as the number of samples allows, at most DIMENSIONS and at least one."""
    models = [*parents, merge]
    samples, units = held[merge].shape
    allowed = samples // (SAMPLES_PER_COLUMN * len(models))
    basis = _components([held[p] for p in parents], shares, max(1, min(DIMENSIONS, allowed, units)))
    return _system([held[name] @ basis for name in models], what="parents and merge", layer=layer, **options)


def _system(parts: Sequence[Tensor], **options) -> OInformation:
    return o_information(torch.cat(list(parts), dim=1), _consecutive([p.shape[1] for p in parts]), **options)


def _unit_groups(units: int) -> list[slice]:
    edges = np.linspace(0, units, min(GROUPS, units) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _components(samples: Sequence[Tensor], shares: Sequence[float], count: int) -> Tensor:
    """Leading principal components ``[units, k]`` of the pooled, centred samples, weighted by share.

    By subspace iteration from a fixed start: near enough, as any fixed basis would do.
    """
    total = float(sum(shares))
    mean = sum((s / total) * x.mean(0) for s, x in zip(shares, samples, strict=True))
    pooled = torch.cat([(s / total) ** 0.5 * (x - mean) for s, x in zip(shares, samples, strict=True)])
    count = min(count, pooled.shape[1])
    if not bool(torch.isfinite(pooled).all()):
        return torch.eye(pooled.shape[1])[:, :count]
    wide = min(count + 8, pooled.shape[1])
    basis = torch.randn(pooled.shape[1], wide, generator=torch.Generator().manual_seed(0))
    for _ in range(6):
        basis = torch.linalg.qr(pooled.T @ (pooled @ basis))[0]
    turn = torch.linalg.svd(pooled @ basis, full_matrices=False)[2].T
    return (basis @ turn)[:, :count]
