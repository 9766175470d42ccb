"""The polar decomposition of matrices of full column rank."""

import torch
from torch import Tensor


def polar_factors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes matrices `[..., n, p]`, `n >= p`, apart into orthonormal columns and a symmetric factor.

    `X = U S` with `S = (X^T X)^1/2` (Higham 2008, chapter 8), from the small triangle of a QR: a Gram matrix
    would square the condition number.

    Returns:
        `U [..., n, p]`, `S [..., p, p]`, and where `[...]` the rank is full to rounding.
    """
    finite = torch.isfinite(matrix).all(-1).all(-1)
    safe = torch.where(finite[..., None, None], matrix, torch.zeros_like(matrix))
    basis, upper = torch.linalg.qr(safe)
    left, values, right = torch.linalg.svd(upper)
    frame = basis @ (left @ right)
    stretch = (right.mT * values.unsqueeze(-2)) @ right
    eps = torch.finfo(values.dtype).eps
    full = values[..., -1] > 16 * values.shape[-1] * eps * values[..., 0]
    return frame, stretch, full & finite


def rotation_factors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes square matrices apart as `X = R S` with a rotation R: where the polar factor is a reflection, the
    direction in which X is weakest is turned over, in both factors."""
    basis, upper = torch.linalg.qr(torch.nan_to_num(matrix))
    left, values, right = torch.linalg.svd(upper)
    frame = basis @ (left @ right)
    mirrored = torch.linalg.det(frame) < 0
    sign = torch.ones_like(values)
    sign[..., -1] = torch.where(mirrored, -1.0, 1.0).to(values)
    rotation = basis @ ((left * sign.unsqueeze(-2)) @ right)
    stretch = (right.mT * (values * sign).unsqueeze(-2)) @ right
    eps = torch.finfo(values.dtype).eps
    full = values[..., -1] > 16 * values.shape[-1] * eps * values[..., 0]
    return rotation, stretch, full & torch.isfinite(matrix).all(-1).all(-1)
