"""Geometry of the spaces that parameters live in: points, distances, shortest paths, means.

Pure geometry on torch tensors. `span` needs torch alone; the manifolds build on geoopt, which takes most of a
second to import, so their names load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from merge_models.manifolds.span import Embedding as Embedding
from merge_models.manifolds.span import Gram as Gram
from merge_models.manifolds.span import GramError as GramError
from merge_models.manifolds.span import coefficients as coefficients
from merge_models.manifolds.span import directions as directions
from merge_models.manifolds.span import embed as embed

if TYPE_CHECKING:
    from merge_models.manifolds.base import AbstractManifold as AbstractManifold
    from merge_models.manifolds.base import CutLocusError as CutLocusError
    from merge_models.manifolds.base import NotOnManifoldError as NotOnManifoldError
    from merge_models.manifolds.frechet import FrechetMean as FrechetMean
    from merge_models.manifolds.frechet import FrechetMeanError as FrechetMeanError
    from merge_models.manifolds.frechet import frechet_mean as frechet_mean
    from merge_models.manifolds.sphere import Sphere as Sphere
    from merge_models.manifolds.sphere import angle_between as angle_between
    from merge_models.manifolds.sphere import mean_coefficients as mean_coefficients
    from merge_models.manifolds.sphere import slerp_coefficients as slerp_coefficients
    from merge_models.manifolds.sphere import step_coefficients as step_coefficients

_LAZY = {
    "AbstractManifold": "base",
    "CutLocusError": "base",
    "NotOnManifoldError": "base",
    "FrechetMean": "frechet",
    "FrechetMeanError": "frechet",
    "frechet_mean": "frechet",
    "Sphere": "sphere",
    "angle_between": "sphere",
    "mean_coefficients": "sphere",
    "slerp_coefficients": "sphere",
    "step_coefficients": "sphere",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
