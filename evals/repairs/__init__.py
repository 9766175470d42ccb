"""Repair of a merge whose activations lost their scale (REPAIR, Jordan et al. 2023)."""

from merge_models.evals.repairs.run import repair as repair
from merge_models.evals.repairs.run import repair_module as repair_module
