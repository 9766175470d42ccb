"""Weights of a merge against its parents' and base's: no forward pass, a block in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merge_models.evals.measures.weights.diagnose import diagnose_parents as diagnose_parents
    from merge_models.evals.measures.weights.diagnose import diagnose_weights as diagnose_weights

__all__ = ["diagnose_parents", "diagnose_weights"]


def __getattr__(name: str) -> Any:
    """Loaded when first used: opening models and comparing their headers needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from merge_models.evals.measures.weights import diagnose

    return getattr(diagnose, name)
