"""Parents before a merge."""

from __future__ import annotations

from merge_models.evals.diagnostics.record import SCHEMA_VERSION, ModelRef, Record
from merge_models.evals.schema.weights import DepthWeights, TensorWeights


class Inspection(Record):
    """Parents before a merge: ``merge-models inspect``.

    Attributes:
        models: parents, then the base.
        compatible: whether they can be merged as they are; ``problems``: what stands in the way, one line
        each.
        tensors, depth: parent geometry, with the merge's fields empty; None when only headers were read.
        cosine, delta_norms, sign_conflict: as in ``WeightDiagnosis``.
        curvature: largest relative gap, over the matrices, between the plain mean's norm and the parents'
            mean norm (0: flat).
        advice: strategies that fit, best first, each with its reason.
    """

    schema_version: int = SCHEMA_VERSION
    models: tuple[ModelRef, ...]
    compatible: bool
    problems: tuple[str, ...] = ()
    tensors: tuple[TensorWeights, ...] | None = None
    depth: tuple[DepthWeights, ...] | None = None
    cosine: tuple[tuple[float | None, ...], ...] | None = None
    delta_norms: tuple[float | None, ...] | None = None
    sign_conflict: float | None = None
    curvature: float | None = None
    advice: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> str:
        """Returns the record as JSON."""
        return self.model_dump_json(indent=1)
