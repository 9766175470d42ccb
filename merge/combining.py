"""Combines pieces of tensors, checks them, and hands them to the place that they go to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merge_models.merge.checkpoint.dtypes import BY_CODE
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.source import Source
from merge_models.merge.errors import NonFiniteError, PlanError
from merge_models.merge.kernels.blocks import NOT_FINITE, OVERFLOW, Span, is_finite, weighted_sum
from merge_models.merge.kernels.rounding import is_narrow, round_into, rounding_key, survival
from merge_models.merge.plan import BLOCK_ELEMENTS, TensorPlan, is_fused
from merge_models.merge.reading import Buffers
from merge_models.merge.strategies.base import AbstractKernelStrategy, Figures, FixedMixture, Mixer, Mixture
from merge_models.merge.survival import EVERY, SAMPLED, Survival
from merge_models.merge.work import Piece, RunOptions, Sink

_COUNTER = "num_batches_tracked"
"""Steps that a batch normalisation has seen: the first model's stand, since no result depends on them."""


class Combiner:
    """Writes a plan's pieces; safe to use from any thread, for different pieces."""

    def __init__(self, models: Sequence[Source], sink: Sink, options: RunOptions) -> None:
        self._models, self._sink, self._options = models, sink, options
        self._survival = Survival()

    def combine(self, piece: Piece, spans: list[Span], survey: Any, buffers: Buffers) -> None:
        """Merges a piece, given its sources and what its survey found, and writes it."""
        tensor, size = piece.tensor, piece.tensor.dtype.size
        start, stop = piece.start * size, piece.stop * size
        data = self._sink.buffer(tensor.name, start, stop, buffers.get("out", stop - start))
        out = Span(data, tensor.dtype)
        if tensor.action == "copy":
            self._copy(tensor, spans, out)
        elif _is_mixed(tensor):
            self._mix(piece, spans, survey, out, buffers)
        else:
            self._combine(piece, spans, survey, out)
        self._sink.write(tensor.name, start, out.data)
        if self._options.progress:
            self._options.progress(out.data.nbytes)

    def survived(self, tensor: TensorPlan) -> Figures:
        """What rounding has left of a tensor's changes."""
        return self._survival.figures(tensor.name, tensor.count)

    def check_inputs(self, tensor: TensorPlan, spans: list[Span]) -> None:
        """
        Raises:
            NonFiniteError: a source holds NaN or Inf, and that is an error.
        """
        if self._options.on_nonfinite == "error" and not all(is_finite(span) for span in spans):
            self._check_flags(NOT_FINITE, tensor, spans)

    def _combine(self, piece: Piece, spans: list[Span], survey: Any, out: Span) -> None:
        """Combines in torch."""
        tensor, strategy = piece.tensor, piece.tensor.strategy
        assert strategy is not None
        self.check_inputs(tensor, spans)
        merged = strategy.combine(piece.block(spans, self._options.seed), survey).reshape(-1)
        if self._draws(tensor):
            self._round(piece, merged.float().contiguous().numpy(), out)
        else:
            out.tensor().copy_(merged)
        if self._samples(piece):
            self._sample(tensor, merged[:SAMPLED].float().numpy(), spans, out)
        if self._options.on_nonfinite == "error" and not is_finite(out):
            self._check_flags(OVERFLOW, tensor, spans)

    def _mix(self, piece: Piece, spans: list[Span], survey: Any, out: Span, buffers: Buffers) -> None:
        """Combines by a block kernel, from storage to storage at once."""
        tensor, mix = piece.tensor, _mixer(piece, spans, survey, self._options.seed)
        if self._draws(tensor):
            wide = Span(buffers.get("wide", 4 * out.count)[: 4 * out.count], BY_CODE["F32"])
            flags = mix(spans, wide)
            flags |= self._round(piece, wide.data.view(np.float32), out)
        else:
            flags = mix(spans, out)
        self._check_flags(flags, tensor, spans)
        if self._samples(piece):
            parts = [_head(span) for span in spans]
            wide = Span(np.empty(4 * parts[0].count, np.uint8), BY_CODE["F32"])
            mix(parts, wide)
            self._sample(tensor, wide.data.view(np.float32), spans, out)

    def _draws(self, tensor: TensorPlan) -> bool:
        return self._options.rounding == "stochastic" and is_narrow(tensor.dtype)

    def _round(self, piece: Piece, values: np.ndarray, out: Span) -> int:
        return round_into(values, out, rounding_key(self._options.seed, piece.tensor.name, piece.start))

    def _samples(self, piece: Piece) -> bool:
        """Whether a piece shall tell what rounding leaves of changes."""
        chosen = piece.start // BLOCK_ELEMENTS % EVERY == 0
        return chosen and is_narrow(piece.tensor.dtype) and len(piece.tensor.sources()) > 1

    def _sample(self, tensor: TensorPlan, values: np.ndarray, spans: list[Span], out: Span) -> None:
        """Notes it, for the block's first values before they were rounded."""
        reference = _head(spans[-1 if tensor.base is not None else 0])
        self._survival.add(tensor.name, values.size, survival(values, _head(out), reference))

    def _copy(self, tensor: TensorPlan, spans: list[Span], out: Span) -> None:
        first, *others = (self._models[ref.model] for ref in tensor.parents)
        compared = [] if tensor.name.endswith(_COUNTER) else list(zip(others, spans[1:], strict=True))
        for source, span in compared:
            if not np.array_equal(span.data, spans[0].data):
                raise PlanError(
                    f"tensor '{printable(tensor.name)}' ({tensor.dtype.code}) differs between"
                    f" {first.label} and {source.label}; whole numbers cannot be merged: make them equal"
                )
        out.data[:] = spans[0].data

    def _check_flags(self, flags: int, tensor: TensorPlan, spans: list[Span]) -> None:
        if not flags or self._options.on_nonfinite == "keep":
            return
        for ref, span in zip(tensor.sources(), spans, strict=True):
            if not is_finite(span):
                raise NonFiniteError(
                    f"{self._models[ref.model].label}: tensor '{printable(tensor.name)}' holds NaN or Inf;"
                    " repair it, or keep it (--on-nonfinite keep, on_nonfinite='keep')"
                )
        raise NonFiniteError(
            f"tensor '{printable(tensor.name)}': merged values do not fit {tensor.dtype.torch_name};"
            " choose a wider dtype (bfloat16, float32), or keep it"
            " (--on-nonfinite keep, on_nonfinite='keep')"
        )


def _is_mixed(tensor: TensorPlan) -> bool:
    """Whether one block kernel does all of a piece's combining."""
    strategy = tensor.strategy
    return strategy is not None and (isinstance(strategy, AbstractKernelStrategy) or is_fused(strategy))


def _mixer(piece: Piece, spans: list[Span], survey: Any, seed: int) -> Mixer:
    """What writes a piece, or its first elements, from sources into an output."""
    if isinstance(piece.tensor.strategy, AbstractKernelStrategy):
        return piece.tensor.strategy.mixer(piece.block(spans, seed), survey)
    weights = _weights(survey, piece.tensor)
    return lambda sources, out: weighted_sum(sources, weights, out)


def _weights(mixture: Mixture | FixedMixture, tensor: TensorPlan) -> list[float]:
    fixed = isinstance(mixture, FixedMixture)
    weights = list(mixture.parents) if fixed else mixture.parents.tolist()
    if tensor.base is not None:
        weights.append(0.0 if mixture.base is None else float(mixture.base))
    return weights


def _head(span: Span) -> Span:
    return Span(span.data[: SAMPLED * span.dtype.size], span.dtype)
