"""Geometry of the spaces that parameters live in: points, distances, shortest paths, means.

Pure geometry on torch tensors. `span`, `arcs`, `unit_sphere`, `frechet` and `procrustes` need torch alone;
the manifolds build on geoopt, which takes most of a second to import. All names load on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merge_models.manifolds.arcs import angle_between as angle_between
    from merge_models.manifolds.arcs import mean_coefficients as mean_coefficients
    from merge_models.manifolds.arcs import slerp_coefficients as slerp_coefficients
    from merge_models.manifolds.arcs import step_coefficients as step_coefficients
    from merge_models.manifolds.base import AbstractManifold as AbstractManifold
    from merge_models.manifolds.base import CutLocusError as CutLocusError
    from merge_models.manifolds.base import NotOnManifoldError as NotOnManifoldError
    from merge_models.manifolds.frechet import FrechetMean as FrechetMean
    from merge_models.manifolds.frechet import FrechetMeanError as FrechetMeanError
    from merge_models.manifolds.frechet import frechet_mean as frechet_mean
    from merge_models.manifolds.gaussians import BuresWasserstein as BuresWasserstein
    from merge_models.manifolds.gaussians import DiagonalBuresWasserstein as DiagonalBuresWasserstein
    from merge_models.manifolds.gaussians import barycenter as barycenter
    from merge_models.manifolds.gaussians import covariance_root as covariance_root
    from merge_models.manifolds.gaussians import optimal_map as optimal_map
    from merge_models.manifolds.procrustes import NearRotation as NearRotation
    from merge_models.manifolds.procrustes import ProcrustesError as ProcrustesError
    from merge_models.manifolds.procrustes import SharedProcrustes as SharedProcrustes
    from merge_models.manifolds.procrustes import procrustes_from_moment as procrustes_from_moment
    from merge_models.manifolds.rotations import SpecialOrthogonal as SpecialOrthogonal
    from merge_models.manifolds.rotations import cayley as cayley
    from merge_models.manifolds.rotations import inverse_cayley as inverse_cayley
    from merge_models.manifolds.rotations import rotation_log as rotation_log
    from merge_models.manifolds.simplex import ProbabilitySimplex as ProbabilitySimplex
    from merge_models.manifolds.span import Embedding as Embedding
    from merge_models.manifolds.span import Gram as Gram
    from merge_models.manifolds.span import GramError as GramError
    from merge_models.manifolds.span import coefficients as coefficients
    from merge_models.manifolds.span import directions as directions
    from merge_models.manifolds.span import embed as embed
    from merge_models.manifolds.sphere import Sphere as Sphere

MANIFOLDS = {
    "euclidean": "euclidean.Euclidean",
    "sphere": "sphere.Sphere",
    "rotations": "rotations.SpecialOrthogonal",
    "gaussians": "gaussians.BuresWasserstein",
    "diagonal_gaussians": "gaussians.DiagonalBuresWasserstein",
    "simplex": "simplex.ProbabilitySimplex",
    "spd": "positive_definite.PositiveDefinite",
    "stiefel": "stiefel.Stiefel",
    "lorentz": "hyperbolic.Lorentz",
    "poincare": "hyperbolic.PoincareBall",
}
"""Every manifold by the name that recipes have for it, and where it is."""


def find_manifold(name: str) -> "type[AbstractManifold]":
    """Returns the manifold class of a name; `UnknownManifoldError` where there is none.

    >>> find_manifold("sphere").name
    'Sphere'
    """
    if name not in MANIFOLDS:
        import difflib

        near = difflib.get_close_matches(name, MANIFOLDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(MANIFOLDS)}"
        raise UnknownManifoldError(f"unknown manifold '{name}'; {hint}")
    module, _, kind = MANIFOLDS[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)


class UnknownManifoldError(ValueError):
    """No manifold has that name; the text suggests the nearest.

    >>> try:
    ...     find_manifold("spher")
    ... except UnknownManifoldError as error:
    ...     print(error)
    unknown manifold 'spher'; did you mean 'sphere'?
    """


_LAZY = {
    "angle_between": "arcs",
    "mean_coefficients": "arcs",
    "slerp_coefficients": "arcs",
    "step_coefficients": "arcs",
    "NearRotation": "procrustes",
    "ProcrustesError": "procrustes",
    "SharedProcrustes": "procrustes",
    "procrustes_from_moment": "procrustes",
    "Embedding": "span",
    "Gram": "span",
    "GramError": "span",
    "coefficients": "span",
    "directions": "span",
    "embed": "span",
    "AbstractManifold": "base",
    "CutLocusError": "base",
    "NotOnManifoldError": "base",
    "FrechetMean": "frechet",
    "FrechetMeanError": "frechet",
    "frechet_mean": "frechet",
    "BuresWasserstein": "gaussians",
    "DiagonalBuresWasserstein": "gaussians",
    "barycenter": "gaussians",
    "covariance_root": "gaussians",
    "optimal_map": "gaussians",
    "SpecialOrthogonal": "rotations",
    "cayley": "rotations",
    "inverse_cayley": "rotations",
    "rotation_log": "rotations",
    "ProbabilitySimplex": "simplex",
    "Sphere": "sphere",
}


_LAZY |= {kind: module for module, _, kind in (place.partition(".") for place in MANIFOLDS.values())}


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
