"""Spectral norm and effective rank of a matrix: exact where the smaller side is small, else estimated.

*Exact*: all singular values in float64; by SVD for tiny matrices, else from the Gram matrix of the smaller
side. A Gram matrix squares the spectrum, so singular values below sqrt(side x eps), some 1e-7 of the largest,
are rounding there and count as zero (``spectra.singular_values_of``). All together they could add at most
1e-7 x side to the sum of the singular values, so the effective rank of weights, which are known to 6e-8
(float32) or 4e-3 (bfloat16) themselves, does not feel it; and a matrix of rank 1 has effective rank 1.

*Estimated*: block Lanczos on the Gram operator ``A = W'W`` of the smaller side n, from BLOCK random
orthonormal vectors, with full reorthogonalisation, in float32; from STEPS[0] steps on until the effective
rank's error is below TOLERANCE, at most STEPS[1]. The eigenvalues of its projection (Ritz values) give

- the largest singular value, from below, with the residual bound ``|A v - t v|`` on its eigenvalue;
- Gauss quadrature for traces of functions of A (Golub and Meurant 2010; stochastic Lanczos quadrature, Ubaru,
  Chen and Saad 2017), so ``sum s`` and ``sum s ln s``, and with them the entropy.

Three things make a few vectors enough. Ritz pairs that have converged are counted once, not by their random
weights (so a matrix of a rank below the space's dimension comes out exact). The trace of A, the squared
Frobenius norm, is known and serves as a control variate. And quadrature of a spectrum that reaches zero
(square matrices) errs as 1/steps^2, always upwards, so it is extrapolated from two numbers of steps.
Its error is the root of two squares: the standard error of the random vectors by the delta method, and the
extrapolation's whole size. Models are measured from the same vectors, so ratios err less than their terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.diagnostics.spectra import effective_rank, singular_values_of
from merge_models.evals.measures.weights.family import Stored
from merge_models.evals.measures.weights.matrix import Matrix

EXACT_SIDE = 384
EXACT_ELEMENTS = 1 << 23
SVD_ELEMENTS = 1 << 15
BLOCK = 4
STEPS = (5, 16)
TOLERANCE = 0.02
MARGIN = 1.7
"""What the error is reported larger by: growing until it looks small picks moments of luck. Widened so, it is
at least the root mean square of the true errors on each kind of matrix tried: the weights of MiniLM, and
random ones of rank 16 to full with flat, power-law and outlying spectra."""

EARLIER = 2
"""How many steps before the last one the extrapolation starts from."""

CONVERGED = 0.02
"""A Ritz pair's residual over its value, below which it counts as one eigenvalue."""

LEADING = 8
"""Dimensions of the leading left singular space that overlaps are taken of."""


@dataclass(frozen=True)
class Spectrum:
    """What is known of a matrix's singular values.

    Attributes:
        spectral_norm: the largest, with ``spectral_norm_error``, its relative error (a bound; 0: exact).
        effective_rank: exp of the entropy of the normalised singular values, with ``error``, its relative
            error (0: exact).
        method: ``exact`` or ``estimated``.
        leading: orthonormal rows ``[k, rows]`` spanning the leading left singular space, where asked for.
    """

    spectral_norm: float
    spectral_norm_error: float
    effective_rank: float
    error: float
    method: Literal["exact", "estimated"]
    leading: Tensor | None = None


def spectrum(
    tensor: Stored, minus: Stored | None, norm: float | None, seed: int, *, leading: bool = False
) -> Spectrum | None:
    """Returns the spectrum of a tensor (less another), as a matrix of its first dimension's rows.

    Args:
        tensor, minus: with two dimensions or more; of one shape.
        norm: its Frobenius norm (None where it is not finite).
        seed: of the random vectors: equal seeds give equal numbers, whatever the number of threads.
        leading: whether the leading left singular space is wanted.

    Returns:
        None for a matrix that is empty, zero or not finite.
    """
    if not norm:
        return None
    matrix = Matrix(tensor, minus, norm)
    if matrix.side <= EXACT_SIDE and tensor.info.count <= EXACT_ELEMENTS:
        return _exact(matrix, leading)
    return _estimated(matrix, norm, seed, leading)


def _exact(matrix: Matrix, leading: bool) -> Spectrum | None:
    dense = matrix.dense()
    width = min(LEADING, max(1, matrix.side // 4))
    left = None
    if dense.numel() <= SVD_ELEMENTS:
        u, values, _ = torch.linalg.svd(dense, full_matrices=False)
        left = u.T[:width]
        singular = values.numpy()
        singular = np.where(
            singular > singular.max() * max(dense.shape) * np.finfo(np.float64).eps, singular, 0.0
        )
    else:
        gram = dense @ dense.T if matrix.wide else dense.T @ dense
        eigenvalues, vectors = torch.linalg.eigh(gram) if leading else (torch.linalg.eigvalsh(gram), None)
        singular = singular_values_of(eigenvalues.numpy())
        if vectors is not None:
            top = vectors[:, -width:].T.flip(0)
            left = top if matrix.wide else torch.linalg.qr(dense @ top.T)[0].T
    rank = effective_rank(singular)
    if rank is None:
        return None
    return Spectrum(
        matrix.unscaled(float(singular.max())), 0.0, rank, 0.0, "exact", left if leading else None
    )


class _Krylov:
    """A Krylov space of A that grows: orthonormal rows Q ``[s, n]``, ``Q A`` and ``Q A Q'``."""

    def __init__(self, matrix: Matrix, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.matrix = matrix
        self._block = _orthonormal(torch.randn(BLOCK, matrix.side, generator=generator))
        self.basis, self.image = self._block, matrix.normal(self._block)

    @property
    def steps(self) -> int:
        return len(self.basis) // BLOCK

    def grow(self) -> None:
        """One step. Where the space is exhausted (low rank) what is left is rounding, and random for us."""
        block = self.image[-BLOCK:]
        for _ in range(3):
            block = _orthonormal(block - block @ self.basis.T @ self.basis)
        self.basis = torch.cat([self.basis, block])
        self.image = torch.cat([self.image, self.matrix.normal(block)])

    def projected(self) -> Tensor:
        rebuilt = self.image.double() @ self.basis.double().T
        return (rebuilt + rebuilt.T) / 2


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T)[0].T.contiguous()


@dataclass(frozen=True)
class _Ritz:
    """Ritz values in falling order, their quadrature weights, residuals, and coordinates in the basis."""

    values: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    vectors: Tensor


def _ritz(space: _Krylov, projected: Tensor, size: int) -> _Ritz:
    """Rayleigh-Ritz on the first ``size`` rows of the basis."""
    values, vectors = torch.linalg.eigh(projected[:size, :size])
    values, vectors = values.flip(0), vectors.flip(1)
    image = vectors.T.float() @ space.image[:size]
    residuals = (image - values.float().unsqueeze(1) * (vectors.T.float() @ space.basis[:size])).norm(dim=1)
    weights = vectors[:BLOCK].square().sum(0) / BLOCK
    return _Ritz(values.clamp_min(0).numpy(), weights.numpy(), residuals.double().numpy(), vectors)


def _estimated(matrix: Matrix, norm: float, seed: int, leading: bool) -> Spectrum | None:
    space = _Krylov(matrix, seed)
    energy = math.ldexp(norm, matrix.log2_scale) ** 2
    while True:
        space.grow()
        if space.steps < STEPS[0]:
            continue
        ritz, entropy, error = _extrapolated(space, energy)
        if error <= TOLERANCE or space.steps == STEPS[1]:
            break
    return Spectrum(
        spectral_norm=matrix.unscaled(math.sqrt(ritz.values[0])),
        spectral_norm_error=float(ritz.residuals[0] / (2 * ritz.values[0])),
        effective_rank=math.exp(entropy),
        error=MARGIN * error,
        method="estimated",
        leading=_leading(space, ritz) if leading else None,
    )


def _extrapolated(space: _Krylov, energy: float) -> tuple[_Ritz, float, float]:
    """The last Ritz values, and the entropy with its error, extrapolated to infinitely many steps."""
    projected, steps = space.projected(), space.steps
    last = _ritz(space, projected, steps * BLOCK)
    entropy, error = _entropy(last, energy, space.matrix.side)
    if error == 0:
        return last, entropy, 0.0
    before = steps - EARLIER
    earlier, _ = _entropy(_ritz(space, projected, before * BLOCK), energy, space.matrix.side)
    bend = before**2 / (steps**2 - before**2) * (entropy - earlier)
    entropy = min(max(entropy + bend, 0.0), math.log(space.matrix.side))
    return last, entropy, math.hypot(error, bend)


def _entropy(ritz: _Ritz, energy: float, side: int) -> tuple[float, float]:
    """Entropy of the normalised singular values by quadrature, and its standard error (0: all are known).

    With S = sum s, Q = sum s ln s over the spectrum the entropy is ln S - Q / S. The first sums are over
    converged values, exact; the others are ``rest`` times means over the quadrature's nodes. To first order
    an error of the random measure moves the entropy by the mean of ``influence`` over it; the part of that
    which is linear in the eigenvalue is known, and taken out.
    """
    values, weights = ritz.values, ritz.weights
    sound = (ritz.residuals <= CONVERGED * values) & (values > 1e-6 * values[0])
    converged = np.logical_and.accumulate(sound)
    exact, rest = np.sqrt(values[converged]), side - int(converged.sum())
    total, product = float(exact.sum()), float(_xlogx(exact).sum())
    left = energy - float(np.square(exact).sum())
    nodes, share = values[~converged], weights[~converged]
    if left <= 1e-9 * energy or not share.sum() > 0 or not nodes.max() > 0:
        return math.log(total) - product / total, 0.0
    share, roots = share / share.sum(), np.sqrt(nodes)
    total += rest * float(share @ roots)
    product += rest * float(share @ _xlogx(roots))
    influence = rest * (roots * (1 / total + product / total**2) - _xlogx(roots) / total)
    centred = nodes - share @ nodes
    spread = float(share @ centred**2)
    slope = float(share @ (centred * influence)) / spread if spread > 0 else 0.0
    noise = influence - slope * nodes
    variance = float(share @ (noise - share @ noise) ** 2) * 2 / (BLOCK * (rest + 2))
    control = slope * (left / rest - float(share @ nodes))
    return math.log(total) - product / total + control, math.sqrt(variance)


def _xlogx(values: np.ndarray) -> np.ndarray:
    return values * np.log(np.where(values > 0, values, 1.0))


def _leading(space: _Krylov, ritz: _Ritz) -> Tensor:
    top = ritz.vectors[:, :LEADING].T.float() @ space.basis
    return (top if space.matrix.wide else _orthonormal(space.matrix.apply(top))).double()
