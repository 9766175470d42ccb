"""A row a diagnostic: a case whose answer is known without computing it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from merge_models.evals.diagnostics.diagnostic import Diagnostic, Place
from merge_models.evals.diagnostics.predictions.distributions import Distributions
from merge_models.evals.diagnostics.record import Estimate
from merge_models.evals.diagnostics.tasks.degenerate import Continuation
from merge_models.evals.measures.weights.diagnose import diagnose_weights

Measured = Callable[[Diagnostic], Any]


@dataclass(frozen=True)
class Known:
    """What a diagnostic must say of a case.

    Attributes:
        place, key: which diagnostic.
        measured: what it says; ``answer``: what is right.
    """

    place: Place
    key: str
    measured: Measured
    answer: Any


def weights(merge: Tensor, *parents: Tensor, base: Tensor | None = None, whole: bool = False) -> Measured:
    """Of a merge whose only tensor is ``merge``."""

    def measured(diagnostic: Diagnostic) -> Any:
        root = None if base is None else {"w": base}
        found = diagnose_weights({"w": merge}, [{"w": parent} for parent in parents], root)
        return getattr(found if whole else found.tensors[0], diagnostic.key)

    return measured


def statistics(**values: Any) -> Measured:
    """Of one model at a site."""
    case = SimpleNamespace(has=frozenset({"finite"}), **values)
    return lambda diagnostic: diagnostic.values("statistics", case)[diagnostic.key]


def site(**values: Any) -> Measured:
    """Of a merge and one parent at a site."""
    case = SimpleNamespace(
        has=frozenset({"finite"}),
        weights=(1.0,),
        estimate=lambda value, drawn: Estimate(value=value),
        effective_ranks=lambda: None,
        **values,
    )

    def measured(diagnostic: Diagnostic) -> Any:
        found: Mapping[str, Any] = diagnostic.values("site", case)
        value = found[diagnostic.key]
        return value.value if isinstance(value, Estimate) else value

    return measured


def mean_of(*given: Any) -> Measured:
    """Of what is told as a mean over tokens, sentences or continuations."""

    def measured(diagnostic: Diagnostic) -> float:
        value = diagnostic.measure(*given)
        return float(value.mean()) if isinstance(value, Tensor) else value

    return measured


def shares(*p: float) -> Distributions:
    """One next-token distribution."""
    return Distributions(torch.tensor([p]).log())


def unit(number: int, side: int = 4) -> Tensor:
    """A matrix with a 1 in its first row, and else zeros."""
    out = torch.zeros(side, side)
    out[0, number] = 1.0
    return out


ONE, EYE, NONE = unit(0), torch.eye(4), torch.zeros(4, 4)
FULL = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
FLAT = [1.0, 1.0, 1.0, 1.0]
FIRST, SECOND = shares(1.0, 0.0), shares(0.0, 1.0)
SENTENCES = torch.nn.functional.normalize(TOKENS, dim=1)

KNOWN: tuple[Known, ...] = (
    Known("tensor", "norm_ratio", weights(2 * FULL, FULL), 2.0),
    Known("tensor", "delta_norm_ratio", weights(FULL + 3 * unit(1, 40), FULL + unit(0, 40), base=FULL), 3.0),
    Known("model", "delta_norms", weights(FULL, 1.5 * FULL, base=FULL, whole=True), (0.5,)),
    Known("tensor", "spectral_norm_ratio", weights(2 * FULL, FULL), 2.0),
    Known("tensor", "stable_rank_ratio", weights(EYE, ONE), 4.0),
    Known("tensor", "effective_rank_ratio", weights(EYE, ONE), 4.0),
    Known("tensor", "delta_effective_rank_ratio", weights(2 * EYE, EYE + ONE, base=EYE), 4.0),
    Known("tensor", "rank_error", weights(EYE, ONE), 0.0),
    Known("tensor", "hyperspherical_energy_ratio", weights(3 * FULL, FULL), 1.0),
    Known("tensor", "sign_conflict", weights(NONE, FULL[:4, :4], -FULL[:4, :4], base=NONE), 1.0),
    Known("tensor", "cosine", weights(NONE, ONE, -ONE, base=NONE), ((1.0, -1.0), (-1.0, 1.0))),
    Known("tensor", "subspace_overlap", weights(FULL, FULL, FULL, base=torch.zeros(40, 40)), 1 - 8 / 40),
    Known("tensor", "largest_angle", weights(ONE, ONE, unit(1)), math.pi / 4),
    Known("tensor", "mean_norm_ratio", weights(ONE, ONE, unit(1)), math.sqrt(0.5)),
    Known("tensor", "mean_delta_norm_ratio", weights(ONE, ONE, unit(1), base=NONE), math.sqrt(0.5)),
    Known("tensor", "effective_parents", weights(ONE + unit(1), ONE, unit(1)), 2.0),
    Known("tensor", "unexplained", weights(unit(2), ONE, unit(1)), 1.0),
    Known("statistics", "variance", statistics(variances=torch.tensor([2.0, 4.0])), 3.0),
    Known("statistics", "effective_rank", statistics(eigenvalues=FLAT), 4.0),
    Known("statistics", "effective_rank_variance", statistics(eigenvalues=FLAT), 4.0),
    Known("statistics", "participation_ratio", statistics(eigenvalues=FLAT), 4.0),
    Known("statistics", "stable_rank", statistics(eigenvalues=FLAT), 4.0),
    Known("statistics", "mean_cosine", statistics(values=torch.tensor([[1.0, 0.0], [2.0, 0.0]])), 1.0),
    Known("statistics", "dead_units", statistics(variances=torch.tensor([0.0, 4.0])), 0.5),
    Known("statistics", "massive_units", statistics(massive=(3,)), (3,)),
    Known(
        "site",
        "variance_ratio",
        site(variances=lambda drawn=False: (torch.full((1, 8) if drawn else (8,), 0.5), [torch.ones(8)])),
        0.5,
    ),
    Known(
        "site",
        "effective_rank_ratio",
        site(merge=SimpleNamespace(effective_rank=2.0), parents=[SimpleNamespace(effective_rank=4.0)]),
        0.5,
    ),
    Known("site", "cka", site(merged=3 * TOKENS, others=[TOKENS]), (1.0,)),
    Known("site", "drift", site(merged=3 * TOKENS, others=[TOKENS]), (2.0,)),
    Known("head", "entropy", mean_of(shares(0.25, 0.25, 0.25, 0.25), None), math.log(4)),
    Known("head", "loss", mean_of(shares(0.25, 0.75), torch.tensor([0])), math.log(4)),
    Known("divergence", "kl", mean_of(FIRST, shares(0.25, 0.75)), math.log(4)),
    Known("divergence", "js", mean_of(shares(0.5, 0.5), shares(0.5, 0.5)), 0.0),
    Known("divergence", "fisher_rao", mean_of(FIRST, SECOND), math.pi),
    Known("divergence", "top1_agreement", mean_of(FIRST, SECOND), 0.0),
    Known("sentence", "cosine", mean_of(SENTENCES, -SENTENCES), -1.0),
    Known("sentence", "neighbour_agreement", mean_of(SENTENCES, SENTENCES), 1.0),
    Known("text", "empty", mean_of(Continuation("say", " \n")), 1.0),
    Known("text", "looping", mean_of(Continuation("say", "so so so")), 1.0),
    Known("text", "low_distinct", mean_of(Continuation("say", "a b a b a b")), 1.0),
    Known("text", "distinct2", mean_of(Continuation("say", "a b a b a")), 0.5),
)
