"""States of random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.measures.weights.family import Stored
from merge_models.evals.measures.weights.spectrum import Spectrum, spectrum
from merge_models.merge.checkpoint.sources.source import StateDict


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum_of(matrix: Tensor, **options: Any) -> Spectrum:
    source = StateDict({"w": matrix}, "test")
    found = spectrum(Stored(source, source.tensors["w"]), None, float(matrix.double().norm()), 0, **options)
    assert found is not None
    return found


def exact_rank(matrix: Tensor) -> float:
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    shares = values[values > 1e-12 * values[0]] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
