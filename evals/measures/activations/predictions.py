"""What the models predict on the calibration text, compared a few tokens at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch

from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.predictions.js import js
from merge_models.evals.diagnostics.registry import at
from merge_models.evals.inputs.memory import release
from merge_models.evals.measures.activations.head import Positions, Predictions
from merge_models.evals.measures.activations.sampling import group_of, interval
from merge_models.evals.schema import Divergence, Estimate, Head, ModelRef

_BYTES, _MOST_ROWS, _INNER = 256 << 20, 256, 32
_ALL_PAIRS = 4
_Values = dict[tuple[str, ...], np.ndarray]


def compare_predictions(
    found: Mapping[str, Predictions],
    positions: Positions,
    refs: Sequence[ModelRef],
    sequences: int,
    drawn: np.ndarray,
) -> Head | None:
    """Compares the models' predictions; models whose logits are not finite are left out.

    Args:
        found: each model's predictions, by name.
        positions: what they are of; ``sequences``: how many there are.
        refs: merge, parents, base.
        drawn: the bootstrap's draws of groups of sequences, [draws, groups].
    """
    known = [ref for ref in refs if ref.name in found]
    values = _measure(found, positions, known)

    def is_finite(name: str, measures: Sequence[str]) -> bool:
        return all(np.isfinite(values[m, name]).all() for m in measures if (m, name) in values)

    own_numbers = [one for one in at("head") if positions.labels is not None or "labels" not in one.needs]
    finite = [ref for ref in known if is_finite(ref.name, [one.key for one in own_numbers])]
    group = group_of(sequences)[positions.rows]

    def estimate(*key: str) -> Estimate:
        return estimate_of(values[key], group, drawn)

    def by_domain(*key: str) -> dict[str, float]:
        return {d: float(values[key][rows].mean()) for d, rows in places.items()}

    places = {d: np.array(positions.domains) == d for d in dict.fromkeys(positions.domains)}
    merge = next((ref for ref in finite if ref.role == "merge"), None)
    distances = [one.key for one in at("divergence")]
    others = [ref for ref in finite if ref.role != "merge" and is_finite(ref.name, distances)]
    pairs = [pair for pair in parent_pairs(finite) if ("js", *pair) in values]
    return Head(
        **{one.key: {ref.name: estimate(one.key, ref.name) for ref in finite} for one in own_numbers},
        loss_by_domain={
            ref.name: by_domain("loss", ref.name) for ref in finite if positions.labels is not None
        },
        divergences=tuple(
            Divergence(
                model=ref.name,
                **{key: estimate(key, ref.name) for key in distances},
                kl_by_domain=by_domain("kl", ref.name),
            )
            for ref in (others if merge else ())
        ),
        parents_js=float(np.mean([values[("js", *pair)].mean() for pair in pairs])) if pairs else None,
        predictions=len(positions),
    )


def parent_pairs(refs: Sequence[ModelRef]) -> list[tuple[str, str]]:
    """Returns pairs of parents: all of them up to four parents, each with the next beyond."""
    names = [ref.name for ref in refs if ref.role == "parent"]
    if len(names) <= _ALL_PAIRS:
        return list(combinations(names, 2))
    return list(zip(names, [*names[1:], names[0]], strict=True))


def estimate_of(values: np.ndarray, group: np.ndarray, drawn: np.ndarray) -> Estimate:
    """Returns the mean of one number a token, with the interval over draws of groups."""
    total = np.bincount(group, values, minlength=drawn.shape[1])
    count = np.bincount(group, minlength=drawn.shape[1])
    again = drawn @ count
    low, high = interval((drawn @ total)[again > 0] / again[again > 0])
    return Estimate(value=float(values.mean()), low=low, high=high)


def _measure(found: Mapping[str, Predictions], positions: Positions, refs: Sequence[ModelRef]) -> _Values:
    """Every number of every position: ``(what, model)`` or ``("js", parent, parent)`` to [positions]."""
    parts: dict[tuple[str, ...], list[np.ndarray]] = defaultdict(list)
    pairs = parent_pairs(refs)
    labels = None if positions.labels is None else torch.from_numpy(positions.labels)
    for start, rows in _chunks(found, refs, len(positions)):
        merge = next((rows[ref.name] for ref in refs if ref.role == "merge"), None)
        for ref in refs:
            own = rows[ref.name]
            followed = None if labels is None else labels[start : start + len(own.log)]
            for one in at("head"):
                if followed is not None or "labels" not in one.needs:
                    parts[one.key, ref.name].append(one.measure(own, followed).numpy())
            if merge is not None and ref.role != "merge":
                for one in at("divergence"):
                    parts[one.key, ref.name].append(one.measure(own, merge).numpy())
        for pair in pairs:
            parts[("js", *pair)].append(js(rows[pair[0]], rows[pair[1]]).numpy())
    return {key: np.concatenate(part) for key, part in parts.items()}


def _chunks(
    found: Mapping[str, Predictions], refs: Sequence[ModelRef], count: int
) -> Iterator[tuple[int, dict[str, Distributions]]]:
    """All models' distributions at the same positions: logits by the hundred, the rest while in the cache.

    They are over the tokens that all models have: a merged vocabulary has more than its parents, at its end.
    """
    sizes = [found[ref.name].vocabulary for ref in refs] or [1]
    rows = max(1, min(_MOST_ROWS, _BYTES // (4 * max(sizes) * max(len(refs), 1))))
    for start in range(0, count, rows):
        stop = min(start + rows, count)
        logits = {ref.name: found[ref.name].logits(start, stop) for ref in refs}
        for low in range(0, stop - start, _INNER):
            inner = slice(low, low + _INNER)
            yield (
                start + low,
                {name: Distributions.of(own[inner, : min(sizes)]) for name, own in logits.items()},
            )
        release()
