"""Orthogonal Procrustes done right: of the rotations that fit best, the one closest to the identity.

`argmin_R |base R - target|_F` over SO(d) depends on the moment `M = base^T target` alone: with its singular
value decomposition `U S V^T` it is `U V^T` (Schönemann 1966). Where M is rank deficient (each matrix with
fewer rows than columns) the minimiser is not unique, and what a library returns in the null space is
arbitrary. Here the null space is completed by `U_n Z V_n^T`, `Z = polar(U_n^T V_n)`, which is the choice
nearest to the identity; the determinant is +1.

Two solvers: `procrustes_from_moment` by SVD, and `SharedProcrustes` for several targets near one base.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class ProcrustesError(ValueError):
    """Matrices that pose no Procrustes problem; the text holds their shapes."""


def procrustes(base: Tensor, target: Tensor, *, null_tolerance: float = 1e-10) -> Tensor:
    """The rotation `[..., d, d]` that best takes `base [..., m, d]` to `target [..., m, d]`, in float64.

    A target equal to the base gives the identity exactly. Raises `ProcrustesError` where shapes differ.
    """
    if base.shape != target.shape or base.dim() < 2:
        raise ProcrustesError(
            f"base and target are [..., m, d] alike: {tuple(base.shape)}, {tuple(target.shape)}"
        )
    moment = base.to(torch.float64).mT @ target.to(torch.float64)
    rotation = procrustes_from_moment(moment, null_tolerance=null_tolerance)
    same = (base == target).flatten(-2).all(dim=-1)[..., None, None]
    return torch.where(same, torch.eye(base.shape[-1]).to(rotation), rotation)


def procrustes_from_moment(moment: Tensor, *, null_tolerance: float = 1e-10) -> Tensor:
    """`argmax_R tr(R^T M)` over SO(d) for moments `[..., d, d]`, nearest to the identity where M is null.

    Singular values up to `null_tolerance` times the largest count as zero. When the best orthogonal matrix
    is a reflection, the least singular direction is turned round (Kabsch 1976): in the null space if there
    is one, where it costs nothing.
    """
    if moment.dim() < 2 or moment.shape[-1] != moment.shape[-2]:
        raise ProcrustesError(f"a moment is [..., d, d], not {tuple(moment.shape)}")
    left, values, right = torch.linalg.svd(moment)
    largest = values[..., :1]
    null = values <= null_tolerance * largest
    reflected = torch.linalg.det(left @ right) < 0
    if not bool(null.any() | reflected.any()):
        return _orthogonal(left @ right)
    # Identity on the range (above every singular value of the null block, least at the least value), so
    # that one polar factor completes the null space and its smallest direction is the one to turn.
    known = 2 + values / torch.where(largest > 0, largest, torch.ones_like(largest))
    inner = left.mT @ right.mT * (null.unsqueeze(-1) & null.unsqueeze(-2))
    inner = inner + torch.diag_embed(torch.where(null, torch.zeros_like(known), known))
    return _orthogonal(left @ _polar(inner, reflected) @ right)


def _orthogonal(rotation: Tensor) -> Tensor:
    """One Newton-Schulz step in float64: float32 factors are orthogonal to some 1e-6 only."""
    if rotation.dtype == torch.float64:
        return rotation
    precise = rotation.to(torch.float64)
    return (1.5 * precise - 0.5 * precise @ (precise.mT @ precise)).to(rotation.dtype)


def _polar(matrix: Tensor, reflected: Tensor) -> Tensor:
    """The nearest orthogonal matrix of determinant +1, or -1 where `reflected`."""
    left, _, right = torch.linalg.svd(matrix)
    turn = (torch.linalg.det(left @ right) < 0) != reflected
    left = left.clone()
    left[..., -1] = torch.where(turn.unsqueeze(-1), -left[..., -1], left[..., -1])
    return left @ right


@dataclass(frozen=True)
class NearRotation:
    """A Procrustes rotation `[d, d]` with how it was found.

    `method` is "sylvester" or "svd"; `residual` is how far the last correction moved the rotated base,
    relative to the base, `|base X|_F / |base|_F`.
    """

    rotation: Tensor
    method: str
    iterations: int
    residual: float


@dataclass(frozen=True)
class SharedProcrustes:
    """Procrustes rotations of many targets near one base, from one factorisation of `G = base^T base`.

    A target `base + D` has the moment `G + E`, `E = base^T D`. Its best rotation is, to first order, `I +
    X` with X skew and `G X + X G = E - E^T`: in the eigenbasis of G, a division by `lambda_i + lambda_j`.
    The same division turns what is left of the skew part of `R^T (G + E)` into the next correction. Two
    kinds of direction need care. Among the null ones (`lambda <= null_tolerance * lambda_max`) no rotation
    is determined: none is made, and at the end they are turned nearest to the identity. Among the weak
    ones, where the change is not small against the base, the block is solved by SVD in each round.

    It works in the dtype of the Gram. float32 is twice as fast, and takes eigenvalues below about 1e-5 of
    the largest for null.
    """

    gram: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    null: int
    null_tolerance: float

    @staticmethod
    def from_gram(gram: Tensor, *, null_tolerance: float = 1e-10) -> SharedProcrustes:
        """Factor `gram [d, d]`; the tolerance is raised to what rounding leaves of a zero eigenvalue."""
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
            raise ProcrustesError(f"a Gram matrix is [d, d], not {tuple(gram.shape)}")
        values, vectors = torch.linalg.eigh(gram)
        floor = 4 * gram.shape[0] ** 0.5 * torch.finfo(gram.dtype).eps
        tolerance = max(null_tolerance, floor)
        null = int((values <= tolerance * values[-1:].clamp_min(0)).sum())
        return SharedProcrustes(gram, values.clamp_min(0), vectors, null, tolerance)

    def solve(self, shift: Tensor, *, tolerance: float = 1e-5, max_iterations: int = 4) -> NearRotation:
        """The rotation for the moment `gram + shift`, `shift = base^T (target - base)` of `[d, d]`.

        Iterates until a correction moves the rotated base by no more than `tolerance` of its norm; that
        correction is still made. A target too far from the base for it is solved by SVD. A zero shift gives
        the identity exactly.
        """
        if shift.shape != self.gram.shape:
            raise ProcrustesError(f"the Gram is {tuple(self.gram.shape)}, the shift {tuple(shift.shape)}")
        shift = shift.to(self.gram)
        if not bool(shift.any()):
            return NearRotation(torch.eye(len(shift)).to(shift), "sylvester", 0, 0.0)
        turned = self.eigenvectors.mT @ (shift @ self.eigenvectors)
        skew = self._correction(turned)
        block = self._weak_block(skew)
        previous, iteration = torch.inf, 0
        if block.stop - self.null <= len(shift) // 4:
            # The rotation is kept as its difference from the identity, whose rounding is relative to its
            # size.
            skew[block, block] = 0
            change = skew + skew @ skew / 2
            for iteration in range(1, max_iterations + 1):
                skew = self._refine(turned, change, block)
                residual = self._movement(skew)
                if not residual < previous:
                    break
                change += change @ skew + skew
                if residual <= tolerance:
                    if not self._is_largest(turned, change):
                        break
                    rotation = self._finish(change, complete=block.start == self.null)
                    return NearRotation(rotation, "sylvester", iteration, residual)
                previous = residual
        rotation = procrustes_from_moment(self.gram + shift, null_tolerance=self.null_tolerance)
        return NearRotation(rotation, "svd", iteration, 0.0)

    def _correction(self, moment: Tensor) -> Tensor:
        """Skew X with `Lambda X + X Lambda = moment - moment^T`, zero among null directions."""
        skew = moment - moment.mT
        skew /= self.eigenvalues.unsqueeze(-1) + self.eigenvalues
        skew[: self.null, : self.null] = 0
        return skew

    def _movement(self, skew: Tensor) -> float:
        energy = (self.eigenvalues * skew.square().sum(dim=0)).sum() / self.eigenvalues.sum()
        return float(energy.sqrt())

    def _weak_block(self, skew: Tensor) -> slice:
        """Directions (eigenvalues ascend) up to the last that turns by 0.02 or more among the weaker ones.

        A small null space belongs to the block; a large one (wide matrices) would make it dear, and is left
        out.
        """
        rows = torch.tril(skew[self.null :, self.null :]).norm(dim=1)
        far = (rows > 0.02).nonzero()
        stop = self.null + (int(far.max()) + 1 if len(far) else 0)
        return slice(0 if self.null < stop <= len(skew) // 4 else self.null, stop)

    def _moment(self, turned: Tensor, change: Tensor) -> Tensor:
        """`R^T (Lambda + E)` with `R = I + change`, in the eigenbasis."""
        moment = turned + change.mT @ turned
        moment += change.mT * self.eigenvalues
        moment.diagonal().add_(self.eigenvalues)
        return moment

    def _is_largest(self, turned: Tensor, change: Tensor) -> bool:
        """Whether the stationary point is the maximum: `R^T M` has no eigenvalue well below zero.

        A target such as the reflected base is stationary at the identity, and far from best there.
        """
        moment = self._moment(turned, change)
        moment = (moment + moment.mT) / 2
        moment.diagonal().add_(1e-3 * self.eigenvalues[-1])
        return int(torch.linalg.cholesky_ex(moment).info) == 0

    def _refine(self, turned: Tensor, change: Tensor, block: slice) -> Tensor:
        """Turn the weak block of `I + change` in place to its optimum; return the next correction."""
        moment = self._moment(turned, change)
        if block.stop > block.start:
            largest = self.eigenvalues[-1] / self.eigenvalues[block.stop - 1]
            turn = procrustes_from_moment(
                moment[block, block], null_tolerance=self.null_tolerance * float(largest)
            )
            change[:, block] = change[:, block] @ turn
            change[block, block] += turn
            change.diagonal()[block] -= 1
            moment[block] = turn.mT @ moment[block]
        skew = self._correction(moment)
        skew[block, block] = 0
        return skew

    def _finish(self, change: Tensor, *, complete: bool) -> Tensor:
        """Complete the null space, leave the eigenbasis, and make the rotation orthogonal."""
        if complete and self.null:
            # R_nn is turned to be symmetric: then its trace, the closeness to the identity, is largest.
            turn = _near_polar(change[: self.null, : self.null]).mT
            change[: self.null] += turn @ change[: self.null]
            change[: self.null, : self.null] += turn
        change = self.eigenvectors @ (change @ self.eigenvectors.mT)
        # One Newton-Schulz step, R (3 I - R^T R) / 2 for R = I + change, without its second-order term.
        change = change - (change + change.mT + change.mT @ change) / 2
        change.diagonal().add_(1)
        return change


def _near_polar(change: Tensor) -> Tensor:
    """`polar(I + change) - I` by Newton-Schulz, for a small change."""
    for _ in range(4):
        excess = change + change.mT + change.mT @ change
        change = change - (excess + change @ excess) / 2
        if float(excess.abs().max()) <= torch.finfo(change.dtype).eps ** 0.5:
            break
    return change
