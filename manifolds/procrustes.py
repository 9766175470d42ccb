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
    """Matrices that pose no Procrustes problem; the text holds their shapes.

    >>> try:
    ...     procrustes_from_moment(torch.ones(2, 3))
    ... except ProcrustesError as error:
    ...     print(error)
    a moment is [..., d, d], not (2, 3)
    """


def procrustes(base: Tensor, target: Tensor, *, null_tolerance: float = 1e-10) -> Tensor:
    """Returns the rotation `[..., d, d]` that best takes `base [..., m, d]` to `target [..., m, d]`, in
    float64.

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
    """Returns `argmax_R tr(R^T M)` over SO(d) for moments `[..., d, d]`, nearest to the identity where M is
    null.

    Singular values up to `null_tolerance` times the largest count as zero. When the best orthogonal matrix
    is a reflection, the least singular direction is turned round (Kabsch 1976): in the null space if there
    is one, where it costs nothing.

    >>> base = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    >>> torch.allclose(procrustes_from_moment(base.mT @ (base @ quarter)), quarter)
    True
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

    >>> base = torch.eye(2, dtype=torch.float64)
    >>> SharedProcrustes.from_gram(base).solve(torch.zeros(2, 2, dtype=torch.float64)).method
    'sylvester'
    """

    rotation: Tensor
    method: str
    iterations: int
    residual: float


@dataclass(frozen=True)
class SharedProcrustes:
    """Procrustes rotations of many targets near one base, from one factorisation of `G = base^T base`.

    A target `base + D` has the moment `G + E`, `E = base^T D`. Its best rotation `R = exp(X)` makes
    `R^T (G + E)` symmetric. To first order that is `G X + X G = E - E^T`; the second order of X solves the
    same equation with `-(P - P^T) / 2`, `P = X (E + E^T)`, on the right. In the eigenbasis of G both are
    divisions by `lambda_i + lambda_j`. Where the third order would matter, the same division turns what is
    left of the skew part of `R^T (G + E)` into the next correction. Two kinds of direction need care. Among
    the null ones (`lambda <= null_tolerance * lambda_max`) no rotation is determined: none is made, and at
    the end they are turned nearest to the identity. Among the weak ones, where the change is not small
    against the base, the block is solved by SVD in each round.

    It works in the dtype of the Gram. float32 is twice as fast, and takes eigenvalues below about 1e-5 of
    the largest for null.

    >>> base = torch.eye(2, dtype=torch.float64)
    >>> turned = base @ torch.linalg.matrix_exp(torch.tensor([[0.0, 0.1], [-0.1, 0.0]], dtype=torch.float64))
    >>> near = SharedProcrustes.from_gram(base.mT @ base).solve(base.mT @ (turned - base))
    >>> torch.allclose(near.rotation, turned)
    True
    """

    gram: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    quotients: Tensor
    null: int
    null_tolerance: float

    @staticmethod
    def from_gram(gram: Tensor, *, null_tolerance: float = 1e-10) -> SharedProcrustes:
        """Factors `gram [d, d]`; the tolerance is raised to what rounding leaves of a zero eigenvalue."""
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1]:
            raise ProcrustesError(f"a Gram matrix is [d, d], not {tuple(gram.shape)}")
        values, vectors = torch.linalg.eigh(gram)
        floor = 4 * gram.shape[0] ** 0.5 * torch.finfo(gram.dtype).eps
        tolerance = max(null_tolerance, floor)
        null = int((values <= tolerance * values[-1:].clamp_min(0)).sum())
        values = values.clamp_min(0)
        quotients = (values.unsqueeze(-1) + values).reciprocal_()
        quotients[:null, :null] = 0
        return SharedProcrustes(gram, values, vectors, quotients, null, tolerance)

    def solve(self, shift: Tensor, *, tolerance: float = 1e-5, max_iterations: int = 6) -> NearRotation:
        """Returns the rotation for the moment `gram + shift`, `shift = base^T (target - base)` of `[d, d]`.

        Corrects until what is left moves the rotated base by no more than `tolerance` of its norm. A target
        too far from the base for it is solved by SVD. A zero shift gives the identity exactly.
        """
        if shift.shape != self.gram.shape:
            raise ProcrustesError(f"the Gram is {tuple(self.gram.shape)}, the shift {tuple(shift.shape)}")
        shift = shift.to(self.gram)
        if not bool(shift.any()):
            return NearRotation(torch.eye(len(shift)).to(shift), "sylvester", 0, 0.0)
        turned = self.eigenvectors.mT @ (shift @ self.eigenvectors)
        skew = self._correction(turned)
        block = self._weak_block(skew)
        found = None
        if block.stop == block.start:
            skew, found = self._expand(turned, skew, tolerance)
        if found is None and block.stop - self.null <= len(shift) // 4:
            found = self._iterate(turned, skew, block, tolerance, max_iterations)
        if found is None:
            rotation = procrustes_from_moment(self.gram + shift, null_tolerance=self.null_tolerance)
            found = NearRotation(rotation, "svd", 0, 0.0)
        return found

    def _expand(self, turned: Tensor, first: Tensor, tolerance: float) -> tuple[Tensor, NearRotation | None]:
        """X to its second order, and its rotation unless the third order, as they foretell it, matters."""
        symmetric = turned + turned.mT
        second = self._correction(first @ symmetric).mul_(-0.5)
        moved, residual = self._movement(first), self._movement(second)
        skew = second.add_(first)
        if not residual * residual <= 0.1 * tolerance * moved:  # a margin, since it is an estimate
            return skew, None
        symmetric *= 0.5
        symmetric.diagonal().add_(self.eigenvalues)
        if not self._is_largest(symmetric):
            return skew, None
        change, exact = _near_exp(skew)
        return skew, NearRotation(self._finish(change, complete=True, exact=exact), "sylvester", 1, residual)

    def _iterate(
        self, turned: Tensor, skew: Tensor, block: slice, tolerance: float, max_iterations: int
    ) -> NearRotation | None:
        """By corrections of what is left; None where they do not get small fast enough."""
        # The rotation is kept as its difference from the identity, whose rounding is relative to its size.
        skew[block, block] = 0
        change, exact = _near_exp(skew)
        previous = torch.inf
        for iteration in range(1, max_iterations + 1):
            if not exact:
                change = _orthogonalised(change)
            moment = self._turn_block(turned, change, block)
            skew = self._correction(moment)
            skew[block, block] = 0
            residual = self._movement(skew)
            left = max_iterations - iteration
            if residual > tolerance and residual * (residual / previous) ** left > tolerance:
                return None
            change, exact = change + (change @ skew).add_(skew), False
            if residual <= tolerance:
                if not self._is_largest((moment + moment.mT).mul_(0.5)):
                    return None
                rotation = self._finish(change, complete=block.start == self.null, exact=False)
                return NearRotation(rotation, "sylvester", iteration, residual)
            previous = residual
        return None

    def _correction(self, moment: Tensor) -> Tensor:
        """Skew X with `Lambda X + X Lambda = moment - moment^T`, zero among null directions."""
        return (moment - moment.mT).mul_(self.quotients)

    def _movement(self, skew: Tensor) -> float:
        energy = (self.eigenvalues * skew.square().sum(dim=0)).sum() / self.eigenvalues.sum()
        return float(energy.sqrt())

    def _weak_block(self, skew: Tensor) -> slice:
        """Directions (eigenvalues ascend) up to the last that turns by 0.1 or more among the weaker ones.

        A small null space belongs to the block; a large one (wide matrices) would make it dear, and is left
        out.
        """
        rows = torch.tril(skew[self.null :, self.null :]).norm(dim=1)
        far = (rows > 0.1).nonzero()
        stop = self.null + (int(far.max()) + 1 if len(far) else 0)
        return slice(0 if self.null < stop <= len(skew) // 4 else self.null, stop)

    def _is_largest(self, moment: Tensor) -> bool:
        """Whether a stationary point is the maximum: no eigenvalue of `R^T M` is well below zero.

        Of that moment the symmetric part is given, and changed.

        A target such as the reflected base is stationary at the identity, and far from best there.
        """
        moment.diagonal().add_(1e-3 * self.eigenvalues[-1])
        return int(torch.linalg.cholesky_ex(moment).info) == 0

    def _turn_block(self, turned: Tensor, change: Tensor, block: slice) -> Tensor:
        """Turns the weak block of `R = I + change` in place to its optimum; returns `R^T (Lambda + E)`."""
        moment = turned + change.mT @ turned
        moment += change.mT * self.eigenvalues
        moment.diagonal().add_(self.eigenvalues)
        if block.stop > block.start:
            largest = self.eigenvalues[-1] / self.eigenvalues[block.stop - 1]
            turn = procrustes_from_moment(
                moment[block, block], null_tolerance=self.null_tolerance * float(largest)
            )
            change[:, block] = change[:, block] @ turn
            change[block, block] += turn
            change.diagonal()[block] -= 1
            moment[block] = turn.mT @ moment[block]
        return moment

    def _finish(self, change: Tensor, *, complete: bool, exact: bool) -> Tensor:
        """Complete the null space, leave the eigenbasis, and make the rotation orthogonal if not `exact`."""
        if complete and self.null:
            # R_nn is turned to be symmetric: then its trace, the closeness to the identity, is largest.
            turn = _near_polar(change[: self.null, : self.null]).mT
            change[: self.null] += turn @ change[: self.null]
            change[: self.null, : self.null] += turn
        change = self.eigenvectors @ (change @ self.eigenvectors.mT)
        if not exact:
            change = _orthogonalised(change)
        change.diagonal().add_(1)
        return change


def _near_exp(skew: Tensor) -> tuple[Tensor, bool]:
    """`X + X^2 / 2` and whether I with it is orthogonal but for rounding: it is but for `X^4 / 4`."""
    square = skew @ skew
    defect = float(square.square().sum(dim=1).max()) / 4
    return square.mul_(0.5).add_(skew), defect <= torch.finfo(skew.dtype).eps


def _orthogonalised(change: Tensor) -> Tensor:
    """One Newton-Schulz step, `R (3 I - R^T R) / 2` for `R = I + change`, without its second-order term."""
    return change - (change.mT @ change).add_(change).add_(change.mT).mul_(0.5)


def _near_polar(change: Tensor) -> Tensor:
    """`polar(I + change) - I` by Newton-Schulz, for a small change."""
    for _ in range(4):
        excess = change + change.mT + change.mT @ change
        change = change - (excess + change @ excess) / 2
        if float(excess.abs().max()) <= torch.finfo(change.dtype).eps ** 0.5:
            break
    return change
