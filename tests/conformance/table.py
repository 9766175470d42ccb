"""What is compared with mergekit 0.1.5: one row for each method and set of parameters.

Imports nothing of merge-models, so that regenerate.py runs in an environment that has mergekit only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SPREADS = {"far": 0.7, "near": 0.05, "fine": 1e-4}
"""Families of inputs: standard normal numbers for the base, parents at that distance from it."""

SHAPES = {"matrix": (12, 16), "vector": (21,), "filter": (4, 3, 3, 3)}
PARENTS = 3


@dataclass(frozen=True)
class Row:
    """One comparison, in float64.

    Attributes:
        name: of the row.
        method: its name, there and here.
        parameters: for mergekit; a list has a value for each parent.
        ours: parameters here where they differ, None leaving one out.
        parents: how many models, without the base.
        base: what the base is there: ``base``, ``unused``, or ``first``: one more model before the others.
        families: which inputs.
        tolerance: largest difference, relative to the largest number of a tensor.
        differs: why results are meant to differ; then they must.
        shapes: which of the inputs' tensors.
    """

    name: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    parents: int = PARENTS
    base: str = "base"
    families: tuple[str, ...] = ("far", "near")
    tolerance: float = 1e-12
    differs: str = ""
    shapes: tuple[str, ...] = tuple(SHAPES)


_WEIGHTS = {"weight": [0.5, 0.3, 0.2]}
_SIGNED = {"weight": [0.8, -0.3, 0.6]}

_FLOAT32_RATIOS = 1e-8
"""mergekit's ratios of counts are float32."""
_PADDED_NORMS = 1e-9
"""mergekit adds 1e-8 to norms that it divides by."""

ROWS = (
    Row("linear", "linear", _WEIGHTS, base="unused"),
    Row("linear-raw", "linear", {**_SIGNED, "normalize": False}, base="unused"),
    Row("task_arithmetic", "task_arithmetic", {**_SIGNED, "lambda": 0.7}),
    Row("task_arithmetic-normalize", "task_arithmetic", {**_WEIGHTS, "normalize": True}),
    Row("ties", "ties", {**_WEIGHTS, "density": 0.3}),
    Row("ties-densities", "ties", {**_SIGNED, "density": [0.2, 0.55, 1.0], "lambda": 0.8}),
    Row("ties-raw", "ties", {**_WEIGHTS, "density": 0.01, "normalize": False}),
    Row("ties-rescale", "ties", {**_WEIGHTS, "density": 0.4, "rescale": True}, {"rescale": "l1"}),
    Row("ties-all", "ties", _SIGNED, families=("far", "fine")),
    Row("breadcrumbs", "breadcrumbs", {**_WEIGHTS, "density": 0.6, "gamma": 0.1}),
    Row("breadcrumbs-gamma", "breadcrumbs",
        {**_WEIGHTS, "density": [0.9, 0.5, 1.0], "gamma": [0.3, 0.0, 0.2]}),
    Row("breadcrumbs_ties", "breadcrumbs_ties",
        {**_SIGNED, "density": 0.5, "normalize": True, "rescale": True}, {"rescale": "l1"}),
    Row("dare_linear", "dare_linear", _WEIGHTS),
    Row("dare_ties", "dare_ties", {**_SIGNED, "lambda": 1.3}),
    Row("della", "della", _WEIGHTS),
    Row("della_linear", "della_linear", {**_SIGNED, "normalize": True}),
    Row("sce", "sce", {"select_topk": 0.4}),
    Row("sce-all", "sce"),
    Row("sce-fine", "sce", families=("fine",),
        differs="weights by energy however small it is: mergekit's are uniform below an absolute 1e-6"),
    Row("ram", "ram", {"epsilon": 0.04}),
    Row("ram-fine", "ram", families=("fine",)),
    Row("ramplus_tl", "ramplus_tl", {"epsilon": 0.06, "r": 0.3, "alpha": 5.0}, tolerance=_FLOAT32_RATIOS),
    Row("ramplus_tl-clipped", "ramplus_tl", {"epsilon": 0.04}, tolerance=_FLOAT32_RATIOS),
    Row("nearswap", "nearswap", {"t": 0.02}, parents=1),
    Row("nearswap-fine", "nearswap", {"t": 0.0001}, parents=1, families=("fine",)),
    Row("arcee_fusion", "arcee_fusion", parents=1),
    Row("passthrough", "passthrough", parents=1, base="unused"),
    Row("passthrough-scale", "passthrough", {"scale": [0.3]}, parents=1, base="unused"),
    Row("slerp", "slerp", {"t": 0.35}, parents=1, base="first"),
    Row("slerp-fine", "slerp", {"t": 0.35}, parents=1, base="first", families=("fine",),
        differs="the arc at every angle: mergekit takes the straight line above cosine 0.9995"),
    Row("nuslerp", "nuslerp", {"weight": [0.6, 0.2]}, parents=2, base="unused"),
    Row("nuslerp-base", "nuslerp", {"weight": [0.6, 0.2]}, parents=2),
    Row("nuslerp-row", "nuslerp", {"weight": [0.6, 0.2], "nuslerp_flatten": False}, parents=2,
        shapes=("matrix", "vector")),
    Row("nuslerp-column", "nuslerp",
        {"weight": [0.6, 0.2], "nuslerp_flatten": False, "nuslerp_row_wise": True},
        parents=2, base="unused", shapes=("matrix", "vector")),
    Row("multislerp", "multislerp", _WEIGHTS, base="unused",
        differs="a step of the log map: mergekit's tangent step is identically zero"),
    Row("multislerp-mean", "multislerp", _WEIGHTS, {"method": "unit_mean"}, base="unused",
        tolerance=_PADDED_NORMS),
    Row("multislerp-base", "multislerp", _WEIGHTS,
        differs="a step of the log map: mergekit's tangent step is identically zero"),
    Row("karcher", "karcher", {"max_iter": 500, "tol": 1e-13}, {"max_iter": None, "tol": None}, base="unused",
        tolerance=1e-11),
    Row("karcher-defaults", "karcher", base="unused", families=("far",),
        differs="solved to the end: mergekit stops after 10 steps or at an absolute 1e-5"),
    Row("model_stock", "model_stock", families=("far",)),
    Row("model_stock-row", "model_stock", {"filter_wise": True}, families=("far",),
        shapes=("matrix", "vector")),
    Row("model_stock-filter", "model_stock", {"filter_wise": True}, families=("far",), shapes=("filter",),
        differs="a filter is all that feeds one output: mergekit's is a run along the last axis"),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A comparison of random methods: statistics of one parent's masked task vector.

    Attributes:
        name: of the row.
        method: its name, there and here.
        parameters: for mergekit.
        ours: parameters here where they differ.
    """

    name: str
    method: str
    parameters: dict[str, Any]
    ours: dict[str, Any] = field(default_factory=dict)


SAMPLE_SHAPE = (256, 512)
SAMPLES = (
    Sample("dare_linear", "dare_linear", {"density": 0.35}, {"rescale": "l1"}),
    Sample("dare_linear-raw", "dare_linear", {"density": 0.35, "rescale": False}),
    Sample("dare_ties", "dare_ties", {"density": 0.7}, {"rescale": "l1"}),
    Sample("della", "della", {"density": 0.5, "epsilon": 0.3, "normalize": False}, {"rescale": "l1"}),
    Sample("della_linear-raw", "della_linear", {"density": 0.3, "epsilon": 0.2, "rescale": False}),
)
