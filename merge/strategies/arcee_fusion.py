"""Arcee Fusion: take from a parent only its most important changes to the base."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from merge_models.merge.kernels.blocks import Span
from merge_models.merge.kernels.importance import divergences, importances, take_important
from merge_models.merge.kernels.keys import keys_of
from merge_models.merge.strategies.base import (
    AbstractKernelStrategy,
    BaseModel,
    Block,
    Figures,
    Grain,
    Mixer,
    Moments,
    Pass,
    Survey,
    TensorSpec,
)
from merge_models.merge.strategies.cuts import Totals
from merge_models.merge.strategies.samples import RUN, SAMPLE, Listed, sample_beside
from merge_models.merge.strategies.select import largest, selection_bytes
from merge_models.merge.strategies.ties import magnitude

_QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Importances:
    """What a survey found: every run's divergence, float64, and from which importance changes are taken."""

    divergences: np.ndarray
    threshold: float


@dataclass(frozen=True)
class ArceeFusion(AbstractKernelStrategy):
    """Takes from the parent its most important changes, and leaves the rest as in the base.

    An element's importance is the size of its change times the divergence ``KL(softmax(parent) ||
    softmax(base))`` of the run along the last dimension that it is in; taken are those of at least median +
    1.5 interquartile ranges over the tensor. Kernel: threshold mask. Carrier: flat space about the base.
    Source: Arcee's mergekit. Quartiles are exact here; mergekit estimates those of tensors above a million
    elements from a random sample, unseeded, and writes the result in float32 whatever the models' dtype.
    """

    name: ClassVar[str] = "arcee_fusion"
    source: ClassVar[str] = "Arcee 2024, mergekit"
    base_model: ClassVar[BaseModel] = BaseModel.REQUIRED
    base_is_mixed: ClassVar[bool] = True
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    @property
    def grain(self) -> Grain:
        return Grain.ROW

    def survey_bytes(self, spec: TensorSpec) -> int:
        return 2 * 8 * spec.count // max(_run_length(spec), 1) + selection_bytes(spec.count, 1)

    def survey(self, spec: TensorSpec) -> Survey:
        found, keys = yield from _quartiles(spec.count) if spec.count > SAMPLE else _quartiles_of_few()
        low, middle, high = map(magnitude, keys)
        return Importances(found, middle + 1.5 * (high - low))

    def mixer(self, block: Block, survey: Importances) -> Mixer:
        length = _run_length(block.spec)
        own = survey.divergences[block.start // length :]

        def mix(sources: Sequence[Span], out: Span) -> int:
            parent, base = sources
            return take_important(parent, base, own, length, survey.threshold, out)

        return mix

    def figures(self, spec: TensorSpec, survey: Importances) -> Figures:
        del spec
        return {"threshold": survey.threshold}


_Found = tuple[np.ndarray, list[int]]
"""Every run's divergence, and the keys of the three quartiles of importance."""


def _quartiles_of_few() -> Generator[Pass, Moments, _Found]:
    """Those of so few elements that all of them may be listed."""

    def measure(block: Block) -> Moments:
        (parent,), base, length = block.spans, _base(block), _run_length(block.spec)
        own = divergences(parent, base, length)
        return Listed(own), Listed(keys_of(importances(parent, base, own, length), None))

    found, keys = (np.concatenate(listed.parts) for listed in (yield Pass(measure)))
    places = [int(quarter * (len(keys) - 1)) for quarter in _QUARTERS]
    return found, np.partition(keys, places)[places].tolist()


def _quartiles(elements: int) -> Generator[Pass, Moments, _Found]:
    """Those of more, by a sample that the first round takes."""

    def measure(block: Block) -> Moments:
        return (Listed(divergences(block.spans[0], _base(block), _run_length(block.spec))),)

    def sizes(totals: Totals) -> list[list[int]]:
        return [[totals.elements - int(quarter * (totals.elements - 1)) for quarter in _QUARTERS]]

    sample, (listed,) = yield from sample_beside(elements, measure)
    found = np.concatenate(listed.parts)

    def series(block: Block) -> tuple[list[Span], None]:
        return [_importances(block, found)], None

    (cuts,) = yield from largest(1, series, sizes, elements, sample)
    return found, [cut.key for cut in cuts]


def _importances(block: Block, found: np.ndarray) -> Span:
    """Importances of a block, or of a sample, given the divergences of all the tensor's runs."""
    length = _run_length(block.spec)
    if block.places is None:
        own = found[block.start // length :]
    else:
        elements = block.places[:, None] + np.arange(RUN)
        own, length = found[elements // length].reshape(-1), 1
    return importances(block.spans[0], _base(block), own, length)


def _base(block: Block) -> Span:
    assert block.base_span is not None
    return block.base_span


def _run_length(spec: TensorSpec) -> int:
    return spec.shape[-1] if spec.shape else 1
