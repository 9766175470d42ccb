"""The types of an evaluation: what every diagnostic returns and what ``report.json`` holds.

Every class is frozen and strict, so a report read back is checked like one just made. A number that is not
defined (a ratio to zero, a statistic of a layer with NaN) is ``None``, never NaN: JSON has no NaN.
``SCHEMA_VERSION`` grows when a field changes its meaning or goes; new fields do not change it.
"""

from __future__ import annotations

from merge_models.evals.diagnostics.record import SCHEMA_VERSION as SCHEMA_VERSION
from merge_models.evals.diagnostics.record import Basis as Basis
from merge_models.evals.diagnostics.record import Estimate as Estimate
from merge_models.evals.diagnostics.record import ModelRef as ModelRef
from merge_models.evals.diagnostics.record import Outcome as Outcome
from merge_models.evals.diagnostics.record import Record as Record
from merge_models.evals.diagnostics.record import Role as Role
from merge_models.evals.diagnostics.record import Site as Site
from merge_models.evals.diagnostics.record import Status as Status
from merge_models.evals.schema.activations import ActivationDiagnosis as ActivationDiagnosis
from merge_models.evals.schema.activations import Calibration as Calibration
from merge_models.evals.schema.activations import Divergence as Divergence
from merge_models.evals.schema.activations import Head as Head
from merge_models.evals.schema.activations import SentenceDrift as SentenceDrift
from merge_models.evals.schema.activations import SiteActivations as SiteActivations
from merge_models.evals.schema.activations import SiteStatistics as SiteStatistics
from merge_models.evals.schema.evaluation import Evaluation as Evaluation
from merge_models.evals.schema.information import InformationDiagnosis as InformationDiagnosis
from merge_models.evals.schema.information import OInformation as OInformation
from merge_models.evals.schema.inspection import Inspection as Inspection
from merge_models.evals.schema.repair import LayerRepair as LayerRepair
from merge_models.evals.schema.repair import RepairReport as RepairReport
from merge_models.evals.schema.tasks import Generation as Generation
from merge_models.evals.schema.tasks import Recovery as Recovery
from merge_models.evals.schema.tasks import TaskDiagnosis as TaskDiagnosis
from merge_models.evals.schema.tasks import TaskScore as TaskScore
from merge_models.evals.schema.verdict import Cause as Cause
from merge_models.evals.schema.verdict import Finding as Finding
from merge_models.evals.schema.verdict import Verdict as Verdict
from merge_models.evals.schema.weights import DepthWeights as DepthWeights
from merge_models.evals.schema.weights import TensorWeights as TensorWeights
from merge_models.evals.schema.weights import WeightDiagnosis as WeightDiagnosis
