"""The points of one tensor where nothing is degenerate, in numpy: all that siblings need.

A span strategy's coefficients come from an N x N Gram matrix. For the few hundred tensors of a model that is
less work than loading torch, so strategies look here first. Formulas are those of ``manifolds.span`` and
``manifolds.arcs``; what they must treat apart (zero points, angles beyond a radian, NaN) is left to them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from merge_models.merge.strategies.families.near_gram import NearGram
from merge_models.merge.strategies.families.span import FixedMixture

WIDEST = 1.0
"""Points further apart than this (radians) are left to the general code."""

_SMALL = 1e-6
"""Points this short against the longest may be zero but for rounding: the general code decides."""

_EPS = float(np.finfo(np.float64).eps)
_ROUNDING = 64 * _EPS


@dataclass(frozen=True)
class NearPoints:
    """Points by their directions: ``units [N, K]``, ``norms [N]``, ``shares [N]`` that sum to 1."""

    units: np.ndarray
    norms: np.ndarray
    shares: np.ndarray

    @staticmethod
    def of(gram: NearGram, shares: tuple[float, ...]) -> NearPoints | None:
        """Returns the points, where all are finite, none is as good as zero, and none far from another."""
        own = np.diagonal(gram.differences)
        if not (np.isfinite(gram.reference) and np.isfinite(gram.differences).all()):
            return None
        length = float(np.sqrt(max(gram.reference, 0.0)))
        along = gram.cross / length if length else np.zeros_like(gram.cross)
        across = gram.differences - np.outer(along, along)
        height = np.diagonal(across)
        height = np.sqrt(np.where(height > 8 * _EPS * own, height, 0.0))
        scale = np.where(height > 0, height, 1.0)
        values, vectors = np.linalg.eigh(across / np.outer(scale, scale))
        values = np.where(values > 8 * _EPS, values, 0.0)
        sides = height[:, None] * vectors * np.sqrt(values)
        points = np.column_stack([length + along, sides])
        norms = np.sqrt((points * points).sum(-1))
        if not bool((norms > _SMALL * norms.max()).all()):
            return None
        near = NearPoints(points / norms[:, None], norms, np.array(shares))
        return near if near.widest <= WIDEST else None

    @property
    def widest(self) -> float:
        """The largest angle between two of the points."""
        first, second = np.triu_indices(len(self.norms), 1)
        return float(angles(self.units[first], self.units[second]).max(initial=0.0))

    @property
    def mean_norm(self) -> float:
        """The weighted mean of the norms."""
        return float(self.shares @ self.norms)

    def mixture(self, units: np.ndarray, figures: dict | None = None) -> FixedMixture:
        """Returns coefficients of a direction over the units as those of the points, as long as the mean
        norm."""
        return self.closed(self.mean_norm * units / self.norms, figures)

    def closed(self, coefficients: np.ndarray, figures: dict | None = None) -> FixedMixture:
        """Returns coefficients of the points; made to sum to 1 where only rounding keeps them from it."""
        gap = 1 - coefficients.sum()
        if abs(gap) <= _ROUNDING:
            coefficients = coefficients + gap * self.shares
        return FixedMixture(tuple(coefficients.tolist()), figures=figures or {})


def about_base(mixture: FixedMixture) -> FixedMixture:
    """Returns a mixture of differences from the base, as one of the parents and the base."""
    rest = 1 - float(np.sum(mixture.parents))
    return replace(mixture, base=0.0 if abs(rest) <= _ROUNDING else rest)


def angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns angles between unit vectors, from half chords (``manifolds.arcs.angle_between``)."""
    gap, both = first - second, first + second
    return 2 * np.arctan2(np.sqrt((gap * gap).sum(-1)), np.sqrt((both * both).sum(-1)))


def sinc(angle: np.ndarray | np.floating) -> np.ndarray:
    """Returns ``sin(angle) / angle``, 1 at 0."""
    return np.sinc(angle / np.pi)


def karcher(points: NearPoints, tolerance: float, most: int) -> FixedMixture | None:
    """Returns the Karcher mean of near points; None where ``most`` iterations do not reach it.

    At the mean m the logs ``(t_i / sin t_i) (u_i - cos t_i m)`` sum to zero, so m is along
    ``sum_i (w_i t_i / sin t_i) u_i``. Repeating that contracts by about ``t^2 / 3``.
    """
    weights, units = points.shares, points.units
    mean = weights @ units
    mean = mean / np.linalg.norm(mean)
    for iteration in range(most + 1):
        turned = angles(mean, units)
        pull = weights / sinc(turned)
        back = pull @ np.cos(turned)
        residual = float(np.linalg.norm(pull @ units - back * mean))
        whole = pull @ units
        length = np.linalg.norm(whole)
        spread = float(np.sqrt(weights @ turned**2))
        if residual <= tolerance * spread + 16 * _EPS:
            figures = {
                "residual": residual,
                "iterations": iteration,
                "converged": True,
                "unique": True,
                "largest_angle": points.widest,
            }
            return points.mixture(pull / length, figures)
        mean = whole / length
    return None


def one_step(points: NearPoints) -> np.ndarray:
    """Returns one Karcher step from the normalised mean, over the units
    (``manifolds.arcs.step_coefficients``)."""
    weights, units = points.shares, points.units
    start = weights / np.linalg.norm(weights @ units)
    mean = start @ units
    turned = angles(mean, units)
    pull = weights / sinc(turned)
    back = pull @ np.cos(turned)
    length = np.linalg.norm(pull @ units - back * mean)
    return (np.cos(length) - sinc(length) * back) * start + sinc(length) * pull


def arc(points: NearPoints, t: float) -> FixedMixture:
    """Returns SLERP's coefficients at ``t`` (Shoemake 1985) for two points as they are."""
    angle = angles(points.units[0], points.units[1])
    ends = np.array([1 - t, t])
    return points.closed(ends * sinc(ends * angle) / sinc(angle), {"angle": float(angle), "arc": True})
