"""Weights of a merge against its parents': no forward pass."""

from __future__ import annotations

from merge_models.evals.diagnostics.record import Record
from merge_models.evals.schema.derived import with_diagnostics


class _Tensor(Record):
    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]


class TensorWeights(with_diagnostics("tensor", _Tensor)):
    """One merged tensor against its parents. Means over parents take the parents' weights.

    Attributes:
        name: tensor name; ``layer`` its layer or None outside the stack; ``kind`` its name without the
        layer's number.
        shape: its shape. Spectral numbers treat it as a matrix of ``shape[0]`` rows; they are None for 1-D
        tensors.
        finite: whether every value of the merged tensor is finite.
    """

    finite: bool = True


class _Layer(Record):
    layer: int | None


class DepthWeights(with_diagnostics("layer", _Layer)):
    """Medians of ``TensorWeights`` over one layer's matrices (layer None: outside the stack)."""


class _Model(Record):
    tensors: tuple[TensorWeights, ...]
    depth: tuple[DepthWeights, ...]


class WeightDiagnosis(with_diagnostics("model", _Model)):
    """The weights of a merge against its parents: a screening, not a verdict.

    Numbers are of all tensors together. Where layers came from different parents, the mean norms are of those
    that each came from, and what is told of all parents together is None.

    Attributes:
        tensors: one record a tensor, in the model's order; ``depth``: one a layer.
        problems: what could not be compared (tensors that a model lacks, has in another shape or with NaN),
            one line each.
        seconds: wall time it took.
    """

    problems: tuple[str, ...] = ()
    seconds: float = 0.0
