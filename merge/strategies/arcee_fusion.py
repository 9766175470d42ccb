"""Arcee Fusion: take from a parent only its most important changes to the base."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Grain, Kernel, Mixer, Moments, Pass, Survey
from merge_models.merge.contract.span import Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.importance import divergences, importances, take_important
from merge_models.merge.kernels.keys import keys_of
from merge_models.merge.kernels.selection.cuts import Totals
from merge_models.merge.kernels.selection.samples import RUN, SAMPLE, Listed, sample_beside
from merge_models.merge.kernels.selection.select import largest, selection_bytes
from merge_models.merge.strategies.families.blocks import mixing_kernel
from merge_models.merge.strategies.families.trimming import magnitude

_QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Importances:
    """What a survey found: every run's divergence, float64, and from which importance changes are taken."""

    divergences: np.ndarray
    threshold: float


@dataclass(frozen=True)
class ArceeFusion(AbstractStrategy):
    """Takes from the parent its most important changes, and leaves the rest as in the base.

    An element's importance is the size of its change times the divergence ``KL(softmax(parent) ||
    softmax(base))`` of the run along the last dimension that it is in; taken are those of at least median +
    1.5 interquartile ranges over the tensor. Kernel: threshold mask. Carrier: flat space about the base.
    Source: Arcee's mergekit. Quartiles are exact here; mergekit estimates those of tensors above a million
    elements from a random sample, unseeded, and writes the result in float32 whatever the models' dtype.
    """

    name: ClassVar[str] = "arcee_fusion"
    source: ClassVar[str] = "Arcee 2024, mergekit"
    base_model: ClassVar[BaseModel] = BaseModel.MIXED
    parents: ClassVar[tuple[int, int | None]] = (1, 1)

    def kernel(self, case: Case) -> Kernel:
        return mixing_kernel(
            case,
            _mixer,
            grain=Grain.ROW,
            survey=_survey,
            figures=_threshold,
            survey_bytes=partial(_survey_bytes, _run_length(case)),
        )


def _survey(elements: int) -> Survey:
    found, keys = yield from _quartiles(elements) if elements > SAMPLE else _quartiles_of_few()
    low, middle, high = map(magnitude, keys)
    return Importances(found, middle + 1.5 * (high - low))


def _survey_bytes(length: int, elements: int) -> int:
    return 2 * 8 * elements // max(length, 1) + selection_bytes(elements, 1)


def _mixer(block: Block, survey: Importances) -> Mixer:
    length = _run_length(block.case)
    own = survey.divergences[block.start // length :]
    (parent,), base = block.spans, block.origin

    def mix(out: Span) -> int:
        first = parent.first(out.count), base.first(out.count)
        return take_important(*first, own, length, survey.threshold, out)

    return mix


def _threshold(survey: Importances) -> Figures:
    return {"threshold": survey.threshold}


_Quartiles = tuple[np.ndarray, list[int]]
"""Every run's divergence, and the keys of the three quartiles of importance."""


def _quartiles_of_few() -> Generator[Pass, Moments, _Quartiles]:
    """Those of so few elements that all of them may be listed."""

    found, keys = (np.concatenate(listed.parts) for listed in (yield Pass(_measured)))
    places = [int(quarter * (len(keys) - 1)) for quarter in _QUARTERS]
    return found, np.partition(keys, places)[places].tolist()


def _measured(block: Block) -> Moments:
    """Lists the divergences of a block's runs, and the keys of its importances."""
    (parent,), base, length = block.spans, block.origin, _run_length(block.case)
    own = divergences(parent, base, length)
    return Listed(own), Listed(keys_of(importances(parent, base, own, length), None))


def _divergences(block: Block) -> Moments:
    return (Listed(divergences(block.spans[0], block.origin, _run_length(block.case))),)


def _quartiles(elements: int) -> Generator[Pass, Moments, _Quartiles]:
    """Those of more, by a sample that the first round takes."""

    def sizes(totals: Totals) -> list[list[int]]:
        return [[totals.elements - int(quarter * (totals.elements - 1)) for quarter in _QUARTERS]]

    sample, (listed,) = yield from sample_beside(elements, _divergences)
    found = np.concatenate(listed.parts)
    (cuts,) = yield from largest(1, partial(_series, found), sizes, elements, sample)
    return found, [cut.key for cut in cuts]


def _series(found: np.ndarray, block: Block) -> tuple[list[Span], None]:
    return [_importances(block, found)], None


def _importances(block: Block, found: np.ndarray) -> Span:
    """Returns importances of a block, or of a sample, given the divergences of all the tensor's runs."""
    length = _run_length(block.case)
    if block.places is None:
        own = found[block.start // length :]
    else:
        elements = block.places[:, None] + np.arange(RUN)
        own, length = found[elements // length].reshape(-1), 1
    return importances(block.spans[0], block.origin, own, length)


def _run_length(case: Case) -> int:
    return case.shape[-1] if case.shape else 1
