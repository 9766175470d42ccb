"""Weights of a merge against its parents' and base's: no forward pass, a block in memory at a time."""

from __future__ import annotations

from merge_models.evals.weights.diagnose import diagnose_parents as diagnose_parents
from merge_models.evals.weights.diagnose import diagnose_weights as diagnose_weights
