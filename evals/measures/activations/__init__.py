"""Activations and predictions of a merge against its parents', on the same tokens."""

from merge_models.evals.measures.activations.diagnosis import TokenSamples as TokenSamples
from merge_models.evals.measures.activations.modules import diagnose_modules as diagnose_modules
from merge_models.evals.measures.activations.probe import ActivationProbe as ActivationProbe
