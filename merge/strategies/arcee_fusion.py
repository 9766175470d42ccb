"""Arcee Fusion: take from a parent only its most important changes to the base."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.contract.kernel import Figures, Grain, Kernel, Mixer, Survey
from merge_models.merge.contract.span import Span
from merge_models.merge.contract.strategy import AbstractStrategy, BaseModel
from merge_models.merge.kernels.importance import take_important
from merge_models.merge.kernels.selection.samples import SAMPLE
from merge_models.merge.kernels.selection.select import selection_bytes
from merge_models.merge.strategies.families.blocks import mixing_kernel
from merge_models.merge.strategies.families.quartiles import quartiles, quartiles_of_few, run_length
from merge_models.merge.strategies.families.trimming import magnitude


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
            survey_bytes=partial(_survey_bytes, run_length(case)),
        )


def _survey(elements: int) -> Survey:
    found, keys = yield from quartiles(elements) if elements > SAMPLE else quartiles_of_few()
    low, middle, high = map(magnitude, keys)
    return Importances(found, middle + 1.5 * (high - low))


def _survey_bytes(length: int, elements: int) -> int:
    return 2 * 8 * elements // max(length, 1) + selection_bytes(elements, 1)


def _mixer(block: Block, survey: Importances) -> Mixer:
    length = run_length(block.case)
    own = survey.divergences[block.start // length :]
    (parent,), base = block.spans, block.origin

    def mix(out: Span) -> int:
        first = parent.first(out.count), base.first(out.count)
        return take_important(*first, own, length, survey.threshold, out)

    return mix


def _threshold(survey: Importances) -> Figures:
    return {"threshold": survey.threshold}
